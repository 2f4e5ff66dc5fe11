"""The keys of an option file: type, range, default and meaning. A new key is one line here.

This is the only place with defaults: :func:`add_defaults` puts them into the options that the code reads. The keys of
registered classes (networks, losses, metrics, optimizers, schedulers) come from the classes' own signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

# Keys that begin so are another program's: they pass in every section but `path`, of whose keys BasicSR makes folders.
FOREIGN = ("x_", "x-")


def _whole(value: Any) -> Any:
    """BasicSR's files write counts as ``!!float 5e3``."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _folder_name(value: str) -> str:
    """A name becomes a folder or a part of a file's name, which must not lead elsewhere."""
    if value in ("", ".", "..") or not value.isprintable() or set(value) & set("/\\") or len(value.encode()) > 200:
        raise ValueError("the name of a folder")
    return value


Count = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(_whole)]
FromZero = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Folder = Annotated[str, AfterValidator(_folder_name)]
Entry = dict[str, Any]  # goes to a registered class, by its `type`


class Section(BaseModel):
    """A mapping of known keys; types are taken at their word (no "3" for 3), and numbers are finite."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),  # a key may be called model_type
        json_schema_extra={"patternProperties": {"^x[_-]": {}}},
    )


class IoBackend(Section):
    """``datasets: <set>: io_backend``."""

    type: Literal["disk", "lmdb", "memcached"]
    """how images are stored: files, or an LMDB"""
    server_list_cfg: str | None = None
    """of memcached"""
    client_cfg: str | None = None
    """of memcached"""
    sys_path: str | None = None
    """of memcached"""


class Dataset(Section):
    """One of ``datasets``: what every type may have."""

    name: Folder
    """in the log, and a folder of results"""
    type: str
    """class of BasicSR's DATASET_REGISTRY"""
    dataroot_gt: str | None = None
    """folder or LMDB of the originals"""
    dataroot_lq: str | None = None
    """folder or LMDB of the small images"""
    io_backend: IoBackend | None = None
    """how images are stored"""
    num_worker_per_gpu: Annotated[int, Field(ge=0)] | None = None
    """worker processes of each process; 0: none"""
    batch_size_per_gpu: Annotated[int, Field(ge=1)] | None = None
    """pairs a step of each process"""
    batch_size_total: Annotated[int, Field(ge=1)] | None = None
    """pairs a step of all processes together, in place of batch_size_per_gpu"""
    dataroot_flow: str | None = None
    """folder of the optical flow, of BasicSR's video sets"""
    use_shuffle: Literal[True] | None = None
    """training data is always shuffled"""
    dataset_enlarge_ratio: Annotated[float, Field(ge=1)] = 1
    """how many times an epoch takes each image"""
    persistent_workers: bool = False
    """workers live on from epoch to epoch"""
    pin_memory: bool = False
    """batches in page-locked memory, faster to the GPU"""
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    """batches are fetched ahead by a thread (cpu) or a CUDA stream (cuda)"""
    num_prefetch_queue: Annotated[int, Field(ge=1)] = 1
    """batches ahead, of prefetch_mode: cpu"""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """what an image that cannot be read does to the run"""
    max_bad_share: Share = 0.01
    """share of images that may be skipped before the run stops"""


class RawDataset(Dataset):
    """PairedRawDataset (ours)."""

    dataroot_gt: str
    """LMDB of the originals"""
    dataroot_lq: str
    """LMDB of the small images"""
    gt_size: Annotated[int, Field(ge=1)] | None = None
    """side of the training patch of the original, pixels"""
    use_hflip: bool | None = None
    """random horizontal flips"""
    use_rot: bool | None = None
    """random vertical flips and rotations by 90 degrees"""


class PairedDataset(RawDataset):
    """PairedImageDataset (BasicSR)."""

    io_backend: IoBackend
    """how images are stored"""
    meta_info_file: str | None = None
    """list of the files to take; without one, all of the folder"""
    filename_tmpl: str = "{}"
    """from an original's name to the small image's"""
    color: Literal["y"] | None = None
    """y: luma alone"""
    mean: list[float] | None = None
    """per channel, subtracted"""
    std: list[float] | None = None
    """per channel, divided by"""


class SingleDataset(Dataset):
    """SingleImageDataset (BasicSR): images without originals."""

    dataroot_lq: str
    """folder or LMDB of the images"""
    io_backend: IoBackend
    """how images are stored"""
    meta_info_file: str | None = None
    """list of the files to take"""
    color: Literal["y"] | None = None
    """y: luma alone"""
    mean: list[float] | None = None
    """per channel, subtracted"""
    std: list[float] | None = None
    """per channel, divided by"""


# Datasets read their keys out of one mapping, so there is no signature; of other types every key passes.
DATASETS: Mapping[str, type[Dataset]] = MappingProxyType(
    {"PairedImageDataset": PairedDataset, "PairedRawDataset": RawDataset, "SingleImageDataset": SingleDataset}
)


class Paths(Section):
    """``path``."""

    model_config = ConfigDict(json_schema_extra={"patternProperties": {}})

    pretrain_network_g: str | None = None
    """generator to start from, or to test"""
    pretrain_network_d: str | None = None
    """discriminator to start from"""
    param_key_g: str | None = "params"
    """which weights of the file: params or params_ema"""
    param_key_d: str | None = "params"
    """the same for the discriminator"""
    strict_load_g: bool = True
    """every weight must be there and fit"""
    strict_load_d: bool = True
    """the same for the discriminator"""
    resume_state: str | None = None
    """training state to go on from; or --auto_resume"""
    ignore_resume_networks: str | list[str] | None = None
    """networks that keep their pretrain_network when resuming"""


class Train(Section):
    """``train``."""

    total_iter: Count
    """iterations of the run"""
    warmup_iter: Annotated[int, Field(ge=-1), BeforeValidator(_whole)] = -1
    """iterations in which the learning rate rises linearly; -1: none"""
    ema_decay: Decay = 0
    """decay of the averaged generator; 0: none"""
    optim_g: Entry
    """optimizer of the generator"""
    optim_d: Entry | None = None
    """optimizer of the discriminator"""
    scheduler: Entry
    """learning rate over the run"""
    pixel_opt: Entry | None = None
    """pixel loss"""
    perceptual_opt: Entry | None = None
    """perceptual loss"""
    gan_opt: Entry | None = None
    """adversarial loss"""
    ldl_opt: Entry | None = None
    """LDL loss: L1 where the generator makes artifacts; needs ema_decay"""
    net_d_iters: Count = 1
    """the generator is updated every n-th iteration"""
    net_d_init_iters: FromZero = 0
    """the discriminator alone for n iterations first"""
    channels_last: bool = False
    """features in the order that convolutions are fastest in"""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """precision of the forward passes"""
    compile: bool = False
    """torch.compile of G, D and the perceptual networks; validation runs G uncompiled"""
    checkpointing: bool = False
    """activations of RRDBs are computed anew in the backward pass: less memory, slower"""
    grad_accumulation: Annotated[int, Field(ge=1)] = 1
    """parts that the batch goes through in"""
    grad_clip: Positive | None = None
    """largest norm of each network's gradient"""
    max_nonfinite: Annotated[int, Field(ge=1)] = 10
    """steps in a row that may be not finite, and are skipped, before the run stops"""
    sync_batch_norm: bool = False
    """the discriminator's batch-norm over all processes (CUDA)"""


class Val(Section):
    """``val``."""

    val_freq: Count | None = None
    """iterations from one validation to the next"""
    save_img: bool
    """write the images"""
    suffix: Folder | None = None
    """of test.py's images, after their name"""
    pbar: bool = False
    """a progress bar"""
    metrics: dict[str, Entry] | None = None
    """metrics by any name"""
    tile: Annotated[int, Field(ge=16)] | None = None
    """side of the tiles that big images are cut into, LR pixels; bounds the memory"""
    tile_overlap: Annotated[int, Field(ge=0)] = 16
    """LR pixels that neighbouring tiles share"""
    threads: Annotated[int, Field(ge=1)] = 2
    """for metrics and images, beside the network"""


class Wandb(Section):
    """``logger: wandb``."""

    project: str | None = None
    """a name sends TensorBoard's figures to wandb"""
    resume_id: str | None = None
    """run of wandb to go on with"""


class Logger(Section):
    """``logger``."""

    print_freq: Count
    """iterations from one line of the log to the next"""
    save_checkpoint_freq: Count | None = None
    """iterations from one checkpoint to the next"""
    use_tb_logger: bool = False
    """TensorBoard"""
    wandb: Wandb | None = None
    """Weights & Biases, behind TensorBoard"""
    keep_last: Count | None = None
    """newest checkpoints that are kept; ~: all"""
    keep_best: bool = False
    """keep the best network of each set and metric"""


class DistParams(Section):
    """``dist_params``."""

    backend: Literal["nccl", "gloo"] | None = None
    """of torch.distributed; ~: nccl with CUDA, otherwise gloo"""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """of the first process, under SLURM"""
    timeout: Positive = 600
    """seconds after which a process that does not answer is given up"""


class OptionFile(Section):
    """An option file of dp_basicsr."""

    name: Folder
    """of the run: experiments/<name>, results/<name>"""
    model_type: str
    """class of BasicSR's MODEL_REGISTRY"""
    scale: Annotated[int, Field(ge=1)]
    """of the super-resolution"""
    num_gpu: Literal["auto"] | Annotated[int, Field(ge=0)]
    """auto: what is there; 0: CPU"""
    manual_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """of every random choice; ~: a random one"""
    deterministic: bool = False
    """deterministic algorithms on CUDA, slower"""
    find_unused_parameters: bool | None = None
    """of DistributedDataParallel; ~: the value of deterministic"""
    dist_params: DistParams | None = None
    """of several processes"""
    datasets: dict[str, Entry]
    """train, val, val_1, test, test_2 ...: the sets by phase"""
    network_g: Entry
    """generator"""
    network_d: Entry | None = None
    """discriminator"""
    path: Paths | None = None
    """networks and states to start from"""
    train: Train | None = None
    """training"""
    val: Val | None = None
    """validation and test"""
    logger: Logger | None = None
    """what is logged and kept"""


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a field holds, also where the field may be None."""
    choices = (annotation, *get_args(annotation))
    return next((one for one in choices if isinstance(one, type) and issubclass(one, Section)), None)


def add_defaults(section: type[Section], values: dict[str, Any]) -> None:
    """Add the defaults to a section and the sections in it, and make counts such as ``5e3`` whole, in place.

    A key whose default is None stays absent. Nothing is checked: wrong values stay as they are.
    """
    for key, value in list(values.items()):
        annotation = section.model_fields[key].annotation if key in section.model_fields else None
        inner = section_in(annotation)
        if inner is not None and isinstance(value, dict):
            add_defaults(inner, value)
        elif _takes_int(annotation):
            values[key] = _whole(value)
    for key, field in section.model_fields.items():
        if not field.is_required() and field.default is not None:
            values.setdefault(key, field.default)


def _takes_int(annotation: Any) -> bool:
    return annotation is int or any(map(_takes_int, get_args(annotation)))


def add_all_defaults(opt: dict[str, Any]) -> None:
    """Complete all sections of an option file, and its datasets by their types; see :func:`add_defaults`."""
    add_defaults(OptionFile, opt)
    datasets = opt.get("datasets")
    for dataset in datasets.values() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict):
            add_defaults(DATASETS.get(str(dataset.get("type")), Dataset), dataset)
