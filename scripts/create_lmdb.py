"""The same as ``dp-basicsr data lmdb``."""

from dp_basicsr.commands.data import lmdb as main

if __name__ == "__main__":
    raise SystemExit(main())
