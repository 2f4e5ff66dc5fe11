"""The same as ``dp-basicsr data networks``."""

from dp_basicsr.commands.data import networks as main

if __name__ == "__main__":
    raise SystemExit(main())
