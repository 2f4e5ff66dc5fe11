"""Train an x4 network with Dual Perceptual Loss in a plain PyTorch loop, on a folder of photographs."""

import argparse
import random
from pathlib import Path

from dp_basicsr.archs import CompactDP
from dp_basicsr.losses import DualPerceptualLoss

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

SCALE, SIDE, BATCH = 4, 128, 16


class Patches(Dataset[torch.Tensor]):
    """Random crops of a folder's images: RGB in [0, 1], (3, SIDE, SIDE)."""

    def __init__(self, folder: Path) -> None:
        images = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
        self.paths = [path for path in images if min(Image.open(path).size) >= SIDE]
        print(f"{len(self.paths)} of {len(images)} images have at least {SIDE} pixels a side")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        image = Image.open(self.paths[number]).convert("RGB")
        x, y = random.randint(0, image.width - SIDE), random.randint(0, image.height - SIDE)
        patch = np.array(image.crop((x, y, x + SIDE, y + SIDE)), dtype=np.float32) / 255
        return torch.from_numpy(patch).permute(2, 0, 1)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help=f"with photographs of at least {SIDE} pixels a side")
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--weights", default="imagenet", help="of VGG19 and ResNet-50; `random` downloads nothing")
args = parser.parse_args()
patches = Patches(args.folder)
if not patches:
    parser.error(f"no photograph to train on in {args.folder}")

device = "cuda" if torch.cuda.is_available() else "cpu"
net_g = CompactDP(upscale=SCALE).to(device)
l_dp = DualPerceptualLoss(vgg_weights=args.weights, resnet_weights=args.weights).to(device)
optimizer = torch.optim.Adam(net_g.parameters(), lr=1e-4)
for epoch in range(args.epochs):
    for gt in DataLoader(patches, BATCH, shuffle=True):
        gt = gt.to(device)
        sr = net_g(F.interpolate(gt, scale_factor=1 / SCALE, mode="bicubic", antialias=True).clamp(0, 1))
        loss = l_dp(sr, gt) + 0.01 * F.l1_loss(sr, gt)  # as ESRGAN's, without its GAN
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss:.4g},", ", ".join(f"{name} {value:.4g}" for name, value in l_dp.terms.items()))
torch.save({"params": net_g.state_dict()}, "net_g.pth")
print("next: dp-basicsr upscale -m net_g.pth -i IMAGE -o results")
