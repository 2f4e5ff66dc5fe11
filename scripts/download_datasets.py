"""The same as ``dp-basicsr data download``."""

from dp_basicsr.commands.data import download as main

if __name__ == "__main__":
    raise SystemExit(main())
