"""The same as ``dp-basicsr data lr``."""

from dp_basicsr.commands.data import lr as main

if __name__ == "__main__":
    raise SystemExit(main())
