"""dp_basicsr: Dual Perceptual Loss for single image super-resolution, as a BasicSR plugin.

``import dp_basicsr`` makes ``import basicsr`` work on today's torchvision and does nothing else: no device, no
download. Importing ``dp_basicsr.losses``, ``.archs`` or ``.models`` registers what is in them with BasicSR.
"""

import sys

# `python -m` and torchrun put the current folder first: its random.py or basicsr/ would hide the real ones.
if (
    sys.argv[:1] == ["-m"]
    and any(word.partition(".")[0] == "dp_basicsr" for word in sys.orig_argv)
    and not getattr(sys.flags, "safe_path", sys.flags.isolated)
):
    sys.path.append(sys.path.pop(0))

from dp_basicsr import compat

compat.install()

__version__ = "0.2.0"
