"""The same as ``dp-basicsr data extract``."""

from dp_basicsr.commands.data import extract as main

if __name__ == "__main__":
    raise SystemExit(main())
