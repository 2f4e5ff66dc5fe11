"""dp_basicsr: Dual Perceptual Loss for single image super-resolution, as a BasicSR plugin.

``import dp_basicsr`` makes ``import basicsr`` work on today's torchvision and does nothing else: no device, no
download. Importing ``dp_basicsr.losses``, ``.archs`` or ``.models`` registers what is in them with BasicSR.
"""

from dp_basicsr import compat

compat.install()

__version__ = "0.2.0"
