"""Judge the runs of a study with seeds image by image: each result and its blends with the start network's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_basicsr.archs.perceptual_arch import RESNET_STAGES, ResNetFeatures, VGGFeatures, vgg_layers
from dp_basicsr.data.imresize import mod_crop
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import read_file
from dp_basicsr.images.strict import encode_png
from dp_basicsr.metrics import METRICS, Metric, Scores, deep_metric, measure
from dp_basicsr.metrics.scores import in_colour
from dp_basicsr.metrics.tensors import device, to_tensor
from dp_basicsr.models.validation import Validator
from dp_basicsr.studies.calibration import read_network, study_options
from dp_basicsr.studies.runner import StudyRun, present_sets
from dp_basicsr.studies.study import Study
from dp_basicsr.utils.atomic_io import replacing

import numpy as np
import torch
from basicsr.utils import img2tensor, tensor2img
from numpy.typing import NDArray
from torch import Tensor, nn

JUDGE, DISTORTION = "deep", "psnr_y"  # keys of METRICS
# The candidates' own networks at layers that no objective trains on. They are no independent judges: neighbouring
# layers resemble each other.
OTHER_LAYERS = {
    "other_vgg": Metric("VGG's other layers", 4, False, ""),
    "other_resnet": Metric("ResNet's other layers", 4, False, ""),
}
RECORDS = {**METRICS, **OTHER_LAYERS}
SECONDARY = ("gmsd", "niqe", *OTHER_LAYERS)
COLUMNS = (DISTORTION, "ssim_y", JUDGE, *SECONDARY)
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # share of the run's result in the blend with the start's
MIDDLE = 192  # pixels a side that OTHER_LAYERS see of each image: VGG16 takes 3 s of a CPU core for a photograph

Image = NDArray[np.uint8]  # (H, W, 3), BGR
Judged = dict[str, dict[str, list[Scores]]]  # set -> image -> metrics for each of ALPHAS


@dataclass(frozen=True)
class Reference:
    """What all runs have in common for an image: original, LQ (1, 3, h, w), and the start's result with its scores."""

    gt: Image
    lq: Tensor
    features: dict[str, Sequence[Tensor]]
    start: Image
    scores: Scores


def judge_runs(study: Study, jobs: Sequence[StudyRun]) -> None:
    """Upscale every image of the study's sets with each trained run, and measure the blends; judged runs are skipped.

    Writes ``results/<run>/judged.json`` and the images of the run alone, ``results/<run>/<set>/<image>.png``.
    """
    trained = [job for job in jobs if job.is_trained()]
    opt = study_options(study)
    sets = {entry["name"]: entry for entry in present_sets(opt) if entry["name"] in study.sets}
    judge: Judge | None = None
    for job in trained:
        # Asked again for each, because another process may have judged it since.
        if sets.keys() <= read_judged(job).keys():
            continue
        if reason := deep_metric.why_not():
            raise UserError(f"the study's judge is not available: {reason}")
        # A smoke run has no start network: its first run stands for it.
        judge = judge or Judge(opt, opt["path"].get("pretrain_network_g") or trained[0].model)
        network = read_network(opt, job.model)
        judged: Judged = {name: {} for name in sets}
        for name, entry in sets.items():
            for path in sorted(Path(entry["dataroot_gt"]).iterdir()):
                picture = Path("results", job.name, name, f"{path.stem}.png")
                judged[name][path.stem] = judge.scores(network, path, Path(entry["dataroot_lq"]), picture)
        # The file marks the run as judged, so it must be complete.
        with replacing(job.evaluation.with_name("judged.json")) as temporary:
            temporary.write_text(json.dumps({"metrics": COLUMNS, "sets": judged}), encoding="utf-8")
        print(f"{job.name}: judged", flush=True)


class Judge:
    """Measures results and their blends with those of the network that all runs start from, in file ``start``."""

    def __init__(self, opt: dict[str, Any], start: str | Path) -> None:
        self.scale = opt["scale"]
        self.networks = feature_networks(opt)
        self.start = read_network(opt, start)
        self.validator = Validator(opt | {"val": {}}, torch.device("cpu"))
        # The originals' features take as long as a run's, so they are kept: half a gigabyte for 25 images.
        self.references: dict[Path, Reference] = {}

    @torch.inference_mode()
    def scores(self, network: nn.Module, gt_path: Path, lq_folder: Path, picture: Path) -> list[Scores]:
        """Upscale an image with ``network``, write it to ``picture``, and return the metrics for each of ALPHAS."""
        if gt_path not in self.references:
            gt = in_colour(mod_crop(read_file(gt_path), self.scale))
            small = in_colour(read_file(lq_folder / gt_path.name))
            lq = img2tensor(small.astype(np.float32) / 255, bgr2rgb=True, float32=True)[None]
            start = tensor2img([self.validator.upscale(self.start, lq)])
            features = {name: extract(gt) for name, extract in self.networks.items()}
            self.references[gt_path] = Reference(gt, lq, features, start, self._measure(start, gt, features))
        known = self.references[gt_path]
        result = tensor2img([self.validator.upscale(network, known.lq)])
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(encode_png(result))
        # Images are blended, not weights: the same curve for every architecture, and one pass of the network.
        blends = [blend(known.start, result, alpha) for alpha in ALPHAS[1:]]
        return [known.scores, *(self._measure(image, known.gt, known.features) for image in blends)]

    def _measure(self, image: Image, gt: Image, features: dict[str, Sequence[Tensor]]) -> Scores:
        pixels = tuple(name for name in COLUMNS if name not in self.networks)
        distances = {
            name: deep_metric.distance(extract(image), features[name]) for name, extract in self.networks.items()
        }
        return measure(image, gt, self.scale, pixels) | distances


def feature_networks(opt: dict[str, Any]) -> dict[str, Callable[[Image], Sequence[Tensor]]]:
    """Return the judge and the candidates' networks at their other layers: functions from an image to its features."""
    loss = opt["train"]["perceptual_opt"]
    names, used = vgg_layers(loss["vgg_type"]), loss["vgg_layer_weights"]
    names = names[: max(map(names.index, used)) + 1]
    # By the block's number, so that the last convolution of each block remains.
    convolutions = {name[4]: name for name in names if name.startswith("conv")}.values()
    other = [name for name in convolutions if name not in used]
    vgg = VGGFeatures(other, loss["vgg_type"], loss["vgg_weights"]).to(device())
    stages = [stage for stage in RESNET_STAGES if stage not in loss["resnet_layer_weights"]]
    resnet = ResNetFeatures(stages, loss["resnet_type"], loss["resnet_weights"]).to(device())

    def middle(image: Image) -> Tensor:
        top, left = (max(side - MIDDLE, 0) // 2 for side in image.shape[:2])
        return to_tensor(image[top : top + MIDDLE, left : left + MIDDLE], 0, "HWC") / 255

    return {
        JUDGE: lambda image: deep_metric.depths(deep_metric.lite0(device()), to_tensor(image, opt["scale"], "HWC")),
        "other_vgg": lambda image: tuple(vgg(middle(image)).values()),
        "other_resnet": lambda image: tuple(resnet(middle(image)).values()),
    }


def blend(start: Image, result: Image, alpha: float) -> Image:
    """Return (1 - alpha) * start + alpha * result, rounded."""
    return np.floor((1 - alpha) * start + alpha * result.astype(np.float64) + 0.5).astype(np.uint8)


def read_judged(job: StudyRun) -> Judged:
    """Return what ``judge_runs`` wrote for a run; nothing if the model or the metrics have changed since."""
    path = job.evaluation.with_name("judged.json")
    if not path.is_file() or (job.is_trained() and path.stat().st_mtime < job.model.stat().st_mtime):
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    judged: Judged = content["sets"] if content.get("metrics") == list(COLUMNS) else {}
    return judged
