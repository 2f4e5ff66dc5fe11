"""Try an installed package, in an empty folder: upscaling, exporting and the loss, without what only training needs."""
# ruff: noqa: E402, PT017  (the imports follow what hides modules from them; pytest is not installed)

import sys

sys.modules |= dict.fromkeys(("basicsr", "lmdb", "lpips", "scipy"))  # as if they were not installed

from dp_basicsr.__main__ import main
from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.losses import DualPerceptualLoss

import torch
from PIL import Image

loss = DualPerceptualLoss(vgg_weights="random", resnet_weights="random")
assert loss(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)) > 0
torch.save({"params": RRDBNetDP(num_feat=4, num_block=1, num_grow_ch=2).state_dict()}, "net.pth")
Image.new("RGB", (9, 8)).save("image.png")
assert main(["upscale", "-i", "image.png", "-o", "out", "-m", "net.pth", "--engine", "torch"]) == 0
assert Image.open("out/image.png").size == (36, 32)
assert main(["export", "-m", "net.pth", "-o", "net.safetensors"]) == 0
assert main(["options", "train_demo", "-o", "mine"]) == 0
try:
    main(["train", "train_demo"])
except SystemExit as stopped:
    assert stopped.code == 2, "it names the command that installs BasicSR"
