"""Stand in for the package, so that the scripts beside it run in a clone that is not installed.

Python looks into a script's own folder first. What it imports then is what ``sys.modules`` has at the end.
"""

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])
del sys.modules[__name__]
importlib.import_module(__name__)
