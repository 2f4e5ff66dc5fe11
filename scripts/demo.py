"""Continue the L1 network in the box with Dual Perceptual Loss on a few photographs and test it, on a CPU, offline."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.deploy.choices import BOX
from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.evaluation.curves import plot_panels, read_run, training_panels

OPTIONS = "options/train_demo.yml"
RUN = "demo_esrgan_dp"
L1, DP = "L1, in the box", "DP, in the box"  # labels of the picture
STEPS = "L1 + the demo's steps"
PANELS = ("Generator", "L_VGG against w * L_Res", "Discriminator")

NOTES = {
    "random": "The demo's steps compare RANDOM features (nothing is downloaded): they show that every part works,\n"
    "not how good the method is. The real networks: make demo WEIGHTS=imagenet",
    "imagenet": "The demo's steps use torchvision's ImageNet weights: a few steps on six photographs show that\n"
    "every part works, not how good the method is.",
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
            for name in ("demo", RUN):
                shutil.rmtree(Path(kind, name), ignore_errors=True)
        demo.prepare_photographs()
        train(weights)
        show(weights)
        print(f"\nThe demo took {time.monotonic() - start:.0f} s.")
    return 0


def train(weights: str) -> None:
    """Continue the L1 network in the box with Dual Perceptual Loss and the relativistic GAN, like ESRGAN."""
    from dp_basicsr.studies import demo

    networks = [f"train:perceptual_opt:{name}_weights={weights}" for name in ("vgg", "resnet")]
    start = f"path:pretrain_network_g={os.path.relpath(BOX[0])}"
    demo.run("dp_basicsr/train.py", "-opt", OPTIONS, "--force_yml", start, *networks)


def show(weights: str) -> None:
    """Upscale the held-out photographs with all networks; print the table and draw the picture and the curves."""
    from dp_basicsr.evaluation.files import markdown
    from dp_basicsr.studies import demo

    folders = {}
    for label, share in ((L1, 0), (DP, 1)):
        folders[label] = demo.OUTPUT / f"share_{share}"
        box = ["-i", demo.DATA / "test/LRbicx4", "-o", folders[label], "--suffix", "_x4", "--alpha_interp", share]
        demo.run("dp_basicsr/inference.py", *box, "--engine", "torch")
    model = f"path:pretrain_network_g=experiments/{RUN}/models/net_g_latest.pth"
    demo.run("dp_basicsr/test.py", "-opt", OPTIONS, "--force_yml", f"name={RUN}", model)
    folders[STEPS] = Path("results", RUN, "visualization", "held_out")
    evaluation = demo.compare_results(folders, NOTES[weights].replace("\n", " "), demo.OUTPUT / "comparison.png")
    panels = training_panels(read_run(Path("experiments", RUN)))
    plot_panels({title: panels[title] for title in PANELS}, demo.OUTPUT / "curves.png")
    print(f"\n{markdown(evaluation)}\n{NOTES[weights]}\n")
    print(f"picture: {demo.OUTPUT / 'comparison.png'}\ncurves:  {demo.OUTPUT / 'curves.png'}")


if __name__ == "__main__":
    raise SystemExit(main())
