"""The same as ``dp-basicsr report``."""

from dp_basicsr.commands.report import main

if __name__ == "__main__":
    raise SystemExit(main())
