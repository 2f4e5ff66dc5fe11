"""Losses, registered in BasicSR's LOSS_REGISTRY when this package is imported."""

from dp_basicsr.losses.dp_loss import DPLoss
from dp_basicsr.losses.dual_perceptual_loss import DualPerceptualLoss
from dp_basicsr.losses.ldl_loss import LDLLoss
from dp_basicsr.losses.lpips_loss import LPIPSLoss

__all__ = ["DPLoss", "DualPerceptualLoss", "LDLLoss", "LPIPSLoss"]
