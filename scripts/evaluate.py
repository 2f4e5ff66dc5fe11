"""The same as ``dp-basicsr evaluate``."""

from dp_basicsr.commands.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
