"""The same as ``dp-basicsr data networks``."""

import sys

sys.path.append(f"{sys.path[0]}/..")  # of a clone that is not installed

from dp_basicsr.commands.data import networks as main

if __name__ == "__main__":
    raise SystemExit(main())
