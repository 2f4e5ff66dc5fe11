"""The same as ``dp-basicsr data check``."""

from dp_basicsr.commands.data import check as main

if __name__ == "__main__":
    raise SystemExit(main())
