"""The same as ``dp-basicsr export``."""

from dp_basicsr.commands.export import main

if __name__ == "__main__":
    raise SystemExit(main())
