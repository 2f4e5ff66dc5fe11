"""Train ESRGAN with Dual Perceptual Loss on a few photographs and test it: minutes on a CPU, offline."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.evaluation.curves import plot_panels, product, read_log

OPTIONS = "options/train_demo.yml"
RUNS = {"L1 stage": "demo_psnr", "ESRGAN-DP": "demo_esrgan_dp"}

# Overrides for the L1 stage that ESRGAN starts from: small patches, many steps.
L1_STAGE = [
    "name=demo_psnr",
    "model_type=PSNRModel",
    "train:perceptual_opt=~",
    "train:gan_opt=~",
    "train:pixel_opt:loss_weight=1",
    "train:ema_decay=0.99",
    "train:optim_g:lr=2e-3",
    "train:total_iter=2000",
    "train:scheduler:milestones=[1000, 1400, 1700, 1900]",
    "datasets:train:gt_size=48",
    "datasets:train:batch_size_per_gpu=8",
    "val:val_freq=1000",
    "logger:print_freq=100",
    "logger:save_checkpoint_freq=1000",
]

NOTES = {
    "random": "VGG19 and ResNet-50 have RANDOM weights (nothing is downloaded): the loss compares random features.\n"
    "This shows that every part works, not how good the method is. The real networks: make demo WEIGHTS=imagenet",
    "imagenet": "VGG19 and ResNet-50 have torchvision's ImageNet weights. Minutes of training on six photographs:\n"
    "this shows that every part works, not how good the method is.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", choices=sorted(NOTES), default="random", help="weights of VGG19 and ResNet-50")
    weights = parser.parse_args(argv).weights
    start = time.monotonic()
    with exit_on_user_error():
        if not Path(OPTIONS).is_file():
            raise UserError(f"expected {OPTIONS} in the current folder: run the demo from the root of the project")
        from dp_basicsr.studies import demo  # takes seconds: torch

        for kind in ("experiments", "results", "tb_logger"):
            for name in ("demo", *RUNS.values()):
                shutil.rmtree(Path(kind, name), ignore_errors=True)
        demo.prepare_photographs()
        train(weights)
        show(weights)
        print(f"\nThe demo took {time.monotonic() - start:.0f} s.")
    return 0


def train(weights: str) -> None:
    """Train with L1, then with Dual Perceptual Loss and the relativistic GAN, like ESRGAN."""
    from dp_basicsr.studies import demo

    demo.run("dp_basicsr/train.py", "-opt", OPTIONS, "--force_yml", *L1_STAGE)
    networks = [f"train:perceptual_opt:{name}_weights={weights}" for name in ("vgg", "resnet")]
    start = "path:pretrain_network_g=experiments/demo_psnr/models/net_g_latest.pth"
    demo.run("dp_basicsr/train.py", "-opt", OPTIONS, "--force_yml", start, *networks)


def show(weights: str) -> None:
    """Test both stages on the held-out photographs; print the table and draw the picture and the curves."""
    from dp_basicsr.studies import demo

    folders = {}
    for label, run in RUNS.items():
        model = f"path:pretrain_network_g=experiments/{run}/models/net_g_latest.pth"
        demo.run("dp_basicsr/test.py", "-opt", OPTIONS, "--force_yml", f"name={run}", model)
        folders[label] = Path("results", run, "visualization", "held_out")
    images = demo.read_results(folders)
    demo.OUTPUT.mkdir(parents=True, exist_ok=True)
    demo.draw_comparison(images, NOTES[weights].replace("\n", " "), demo.OUTPUT / "comparison.png")
    draw_curves(demo.OUTPUT / "curves.png")
    print(f"\n{demo.metrics_table(images)}\n\n{NOTES[weights]}\n")
    print(f"picture: {demo.OUTPUT / 'comparison.png'}\ncurves:  {demo.OUTPUT / 'curves.png'}")


def draw_curves(path: Path) -> None:
    """Draw the losses of both stages, and L_VGG with w * L_Res."""
    first, second = (read_log(next(Path("experiments", run).glob("train_*.log"))) for run in RUNS.values())
    weighted = product(second["dp_weight"], second["l_g_resnet"])
    plot_panels(
        {
            "L1 stage": {"l_pix": first["l_pix"]},
            "generator": {name: second[name] for name in ("l_g_pix", "l_g_percep", "l_g_gan")},
            "L_VGG and w * L_Res": {"l_g_vgg": second["l_g_vgg"], "dp_weight * l_g_resnet": weighted},
            "discriminator": {name: second[name] for name in ("l_d_real", "l_d_fake")},
        },
        path,
    )


if __name__ == "__main__":
    raise SystemExit(main())
