"""The same as ``dp-basicsr features``."""

from dp_basicsr.commands.features import main

if __name__ == "__main__":
    raise SystemExit(main())
