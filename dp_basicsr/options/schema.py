"""The keys of an option file: type, range, default and meaning. A new key takes one line here.

``OptionFile`` is validated once, and is what runs: our code reads its attributes, and BasicSR gets ``as_dict()``. The
keys of registered classes (networks, losses, metrics, optimizers, schedulers) come from their signatures, so such an
entry remains a mapping here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from dp_basicsr.options.section import (
    Count,
    Decay,
    Entry,
    FilePath,
    FolderName,
    FromZero,
    NonNegative,
    Ours,
    Positive,
    Section,
    Share,
    whole,
)

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag


class IoBackend(Section):
    """``datasets: <set>: io_backend``."""

    type: Literal["disk", "lmdb", "memcached"]
    """how images are stored: files, or an LMDB"""
    server_list_cfg: str | None = None
    """for memcached"""
    client_cfg: str | None = None
    """for memcached"""
    sys_path: str | None = None
    """for memcached"""


class Dataset(Section):
    """One of ``datasets``: the keys of every type."""

    name: FolderName
    """name in the log and folder of the results"""
    type: str
    """class of BasicSR's DATASET_REGISTRY"""
    dataroot_gt: FilePath | None = None
    """folder or LMDB of the GT images"""
    dataroot_lq: FilePath | None = None
    """folder or LMDB of the LQ images"""
    io_backend: IoBackend | None = None
    """how images are stored"""
    num_worker_per_gpu: Annotated[int, Field(ge=0)] | None = None
    """loader worker processes per training process; 0: none"""
    batch_size_per_gpu: Annotated[int, Field(ge=1)] | None = None
    """pairs per step of each process"""
    batch_size_total: Annotated[int, Field(ge=1)] | None = None
    """pairs per step of all processes together, instead of batch_size_per_gpu"""
    dataroot_flow: FilePath | None = None
    """folder of the optical flow, for BasicSR's video sets"""
    # Stands in many published files, and is read by nothing: false would be a false promise.
    use_shuffle: Literal[True] | None = None
    """training data is always shuffled"""
    dataset_enlarge_ratio: Annotated[float, Field(ge=1)] = 1
    """how often an epoch uses each image"""
    persistent_workers: bool = True
    """keep the workers from epoch to epoch"""
    pin_memory: bool = False
    """page-locked memory for batches, faster to copy to the GPU"""
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    """prefetch batches in a thread (cpu) or a CUDA stream (cuda)"""
    num_prefetch_queue: Annotated[int, Field(ge=1)] = 1
    """number of prefetched batches with prefetch_mode: cpu"""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """what to do if an image cannot be read"""
    max_bad_share: Share = 0.01
    """share of images that may be skipped before the run stops"""


class RawDataset(Dataset):
    """PairedRawDataset (dp_basicsr)."""

    dataroot_gt: FilePath
    """LMDB of the GT images"""
    dataroot_lq: FilePath
    """LMDB of the LQ images"""
    gt_size: Annotated[int, Field(ge=1)] | None = None
    """side of the GT training patch in pixels"""
    use_hflip: bool | None = None
    """random horizontal flips"""
    use_rot: bool | None = None
    """random vertical flips and rotations by 90 degrees"""
    filename_tmpl: Literal["{}"] | None = None
    """the LQ has the GT's name, as all records of LMDBs have"""


class ImageFiles(Section):
    """Keys of BasicSR's sets of images."""

    meta_info_file: FilePath | None = None
    """list of the files to use; without it, all files of the folder"""
    color: Literal["y"] | None = None
    """y: luma only"""
    mean: list[float] | None = None
    """subtracted per channel"""
    std: list[Positive] | None = None
    """divisor per channel"""


class PairedDataset(ImageFiles, RawDataset):
    """PairedImageDataset (BasicSR)."""

    dataroot_gt: FilePath
    """folder or LMDB of the GT images (images without GT: type SingleImageDataset)"""
    dataroot_lq: FilePath
    """folder or LMDB of the LQ images (`data lr` makes them)"""
    io_backend: IoBackend
    """how images are stored, such as {type: disk}"""
    filename_tmpl: str = "{}"  # type: ignore[assignment]
    """template of the LQ file name, {} is the GT's name"""


class SingleDataset(ImageFiles, Dataset):
    """SingleImageDataset (BasicSR): images without GT."""

    dataroot_lq: FilePath
    """folder or LMDB of the images"""
    io_backend: IoBackend
    """how images are stored, such as {type: disk}"""


# Datasets read their keys from one mapping and have no signature; other types accept every key.
DATASETS: Mapping[str, type[Dataset]] = MappingProxyType(
    {"PairedImageDataset": PairedDataset, "PairedRawDataset": RawDataset, "SingleImageDataset": SingleDataset}
)


def dataset_model(values: Any) -> type[Dataset]:
    """Return the model of a set by its ``type``."""
    kind = values.get("type") if isinstance(values, dict) else None
    return DATASETS.get(kind, Dataset) if isinstance(kind, str) else Dataset


AnyDataset = Annotated[
    Annotated[PairedDataset, Tag("PairedDataset")]
    | Annotated[RawDataset, Tag("RawDataset")]
    | Annotated[SingleDataset, Tag("SingleDataset")]
    | Annotated[Dataset, Tag("Dataset")],
    # Chosen by `type`, so that a mistake is reported once and not for each kind of set.
    Discriminator(lambda value: (type(value) if isinstance(value, Dataset) else dataset_model(value)).__name__),
]


class Paths(Section):
    """``path``."""

    # No keys of other programs here: BasicSR makes a folder of every key of `path`.
    model_config = ConfigDict(json_schema_extra={"patternProperties": {}})

    pretrain_network_g: FilePath | None = None
    """generator to start from, or to test"""
    pretrain_network_d: FilePath | None = None
    """discriminator to start from"""
    param_key_g: str | None = "params"
    """weights to read from the file: params or params_ema"""
    param_key_d: str | None = "params"
    """the same for the discriminator"""
    strict_load_g: bool = True
    """all weights must be present and match"""
    strict_load_d: bool = True
    """the same for the discriminator"""
    resume_state: FilePath | None = None
    """training state to resume from; or use --auto_resume"""
    resume_schedule: Literal["state", "options"] = "state"
    """when resuming, take lr, betas, milestones ... from the training state or from the option file"""
    ignore_resume_networks: str | list[str] | None = None
    """networks that keep their pretrain_network when resuming"""


class Balance(Section):
    """``train: balance``."""

    by: Literal["gradient", "value"] = "gradient"
    """balance the losses' gradients at the image, or their values"""
    shares: Annotated[dict[str, NonNegative], Field(min_length=1)]
    """share of each loss (pix, gan, ldl, percep, or the terms of a DPLoss); the sum is 1"""
    ema: Share = 0.99
    """decay of the running means; 0: this step, 1: the mean of all steps"""
    max_weight: Positive | None = None
    """upper limit of each weight, relative to the loss's loss_weight"""
    start_iter: FromZero = 0
    """first iteration that is balanced"""


class Train(Section):
    """``train``."""

    total_iter: Count
    """iterations of the run"""
    warmup_iter: Annotated[int, Field(ge=-1), BeforeValidator(whole)] = -1
    """iterations of linear learning rate warm-up; -1: none"""
    ema_decay: Decay = 0
    """decay of the generator's moving average (EMA); 0: none"""
    optim_g: Entry
    """optimizer of the generator"""
    optim_d: Entry | None = None
    """optimizer of the discriminator"""
    scheduler: Entry
    """learning rate schedule"""
    pixel_opt: Entry | None = None
    """pixel loss"""
    perceptual_opt: Entry | None = None
    """perceptual loss"""
    gan_opt: Entry | None = None
    """adversarial loss"""
    ldl_opt: Entry | None = None
    """LDL loss: L1 where the generator creates artifacts; needs ema_decay"""
    balance: Ours[Balance | None] = None
    """weight the losses by their shares of the gradient at the image"""
    net_d_iters: Count = 1
    """update the generator every n-th iteration"""
    net_d_init_iters: FromZero = 0
    """iterations that train only the discriminator first"""
    channels_last: Ours[bool] = False
    """memory layout that is fastest for convolutions"""
    amp: Ours[Literal["none", "bf16", "fp16"]] = "none"
    """precision of the forward passes"""
    compile: Ours[bool] = False
    """torch.compile of G, D (without spectral norm) and the perceptual networks; validation runs G uncompiled"""
    checkpointing: Ours[bool] = False
    """recompute the activations of blocks in the backward pass: less memory, slower"""
    grad_accumulation: Ours[Annotated[int, Field(ge=1)]] = 1
    """number of parts to split the batch into"""
    grad_clip: Ours[Positive | None] = None
    """maximum norm of each network's gradient"""
    max_nonfinite: Ours[Annotated[int, Field(ge=1)]] = 10
    """consecutive non-finite steps that are skipped before the run stops"""
    freeze: Ours[list[str] | None] = None
    """patterns of the generator's weights that are not trained, such as body.0.*"""
    sync_batch_norm: Ours[bool] = False
    """synchronise the discriminator's batch-norm over all processes (CUDA)"""


class Val(Section):
    """``val``."""

    val_freq: Count | None = None
    """iterations between validations"""
    save_img: bool | None = None
    """save the images; ~: in a test"""
    suffix: FolderName | None = None
    """suffix of test.py's image names"""
    pbar: bool = False
    """show a progress bar"""
    metrics: dict[FolderName, Entry] | None = None
    """metrics, each with a name of your choice"""
    tile: Ours[Annotated[int, Field(ge=16)] | None] = None
    """tile size for large images in LR pixels; bounds the memory"""
    tile_overlap: Ours[Annotated[int, Field(ge=0)]] = 16
    """overlap of neighbouring tiles in LR pixels"""
    at_start: Ours[bool | None] = None
    """validate the start weights, as a baseline; ~: if the generator starts from a file"""
    patience: Ours[Count | None] = None
    """end the training after this many validations in a row that improve no monitored metric; turns keep_best on"""
    monitor: Ours[str | list[str] | None] = None
    """metrics that patience watches, on every set, or `set/metric`; ~: all"""
    min_delta: Ours[NonNegative] = 0
    """what counts as better must be better by more than this"""
    threads: Ours[Annotated[int, Field(ge=1)]] = 2
    """number of threads for metrics and image files"""


class Wandb(Section):
    """``logger: wandb``."""

    project: str | None = None
    """wandb project; sends TensorBoard's figures to wandb"""
    resume_id: str | None = None
    """wandb run to resume: its id, its page's address, or the name of its folder"""


class Logger(Section):
    """``logger``."""

    print_freq: Count
    """iterations between log lines"""
    save_checkpoint_freq: Count | None = None
    """iterations between checkpoints"""
    use_tb_logger: bool = False
    """TensorBoard"""
    wandb: Wandb | None = None
    """Weights & Biases, on top of TensorBoard"""
    keep_last: Ours[Count | None] = None
    """number of newest checkpoints to keep; ~: all"""
    keep_best: Ours[bool] = False
    """keep the best network of each set and metric"""

    @property
    def wandb_project(self) -> str | None:
        """The project of wandb, if it is asked for."""
        return self.wandb.project if self.wandb else None


class DistParams(Section):
    """``dist_params``."""

    backend: Literal["nccl", "gloo"] | None = None
    """backend of torch.distributed; ~: nccl with CUDA, otherwise gloo"""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """port of the first process, under SLURM"""
    timeout: Positive = 600
    """seconds until a collective operation times out"""


def _or_empty(section: type[Section]) -> BeforeValidator:
    """Take ~ for an empty section."""
    return BeforeValidator(lambda value: {} if value is None else value, json_schema_input_type=section | None)


class OptionFile(Section):
    """An option file of dp_basicsr."""

    name: FolderName
    """name of the run: experiments/<name>, results/<name>"""
    model_type: str
    """class of BasicSR's MODEL_REGISTRY"""
    scale: Annotated[int, Field(ge=1)]
    """super-resolution factor"""
    num_gpu: Literal["auto"] | Annotated[int, Field(ge=0)]
    """auto: all that are available; 0: CPU"""
    manual_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """seed of all random choices; ~: a random one"""
    deterministic: bool = False
    """deterministic algorithms on CUDA, slower"""
    find_unused_parameters: bool | None = None
    """argument of DistributedDataParallel; ~: the value of deterministic"""
    dist_params: Annotated[DistParams, _or_empty(DistParams)] = Field(default_factory=DistParams)
    """settings for several processes"""
    datasets: dict[str, AnyDataset]
    """data sets by phase: train, val, val_1, test, test_2 ..."""
    network_g: Entry
    """generator"""
    network_d: Entry | None = None
    """discriminator"""
    path: Annotated[Paths, _or_empty(Paths)] = Field(default_factory=Paths)
    """networks and training states to start from"""
    train: Train | None = None
    """training"""
    val: Val | None = None
    """validation and test"""
    logger: Logger | None = None
    """logging and checkpoints"""

    def as_json(self) -> bytes:
        """Return the options, with defaults, as JSON."""
        return json.dumps(self.as_dict(), indent=1, default=str).encode()

    @property
    def training(self) -> Train:
        """``train``, which the checks require for training."""
        assert self.train is not None
        return self.train

    @property
    def logs(self) -> Logger:
        """``logger``, which the checks require for training."""
        assert self.logger is not None
        return self.logger

    def sets(self, phase: str) -> dict[str, Dataset]:
        """Return the sets of a phase by their keys: ``val_1`` is one of ``val``."""
        return {key: dataset for key, dataset in self.datasets.items() if key.split("_")[0] == phase}


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section model of a field, which may also allow None."""
    choices = (annotation, *get_args(annotation))
    return next((choice for choice in choices if isinstance(choice, type) and issubclass(choice, Section)), None)
