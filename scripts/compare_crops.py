"""The same as ``dp-basicsr crops``."""

from dp_basicsr.commands.crops import main

if __name__ == "__main__":
    raise SystemExit(main())
