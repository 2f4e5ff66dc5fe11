"""Losses, registered in BasicSR's LOSS_REGISTRY; the names in ``__all__`` are the public API.

BasicSR itself is needed only for terms from its registry.
"""

from dp_basicsr.losses.balance import Balancer
from dp_basicsr.losses.dual_perceptual_loss import DPLoss, DualPerceptualLoss
from dp_basicsr.losses.ldl_loss import LDLLoss
from dp_basicsr.losses.lpips_loss import LPIPSLoss

__all__ = ["Balancer", "DPLoss", "DualPerceptualLoss", "LDLLoss", "LPIPSLoss"]
