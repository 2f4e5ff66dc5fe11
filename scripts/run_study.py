"""The same as ``dp-basicsr study``."""

from dp_basicsr.commands.study import main

if __name__ == "__main__":
    raise SystemExit(main())
