"""Reading option files and command lines: valid input, refused input, and no code execution."""

from __future__ import annotations

import os
import re
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, get_type_hints

from dp_basicsr.errors import UserError
from dp_basicsr.options import override, parse_command_line, read_given_options, read_options, schema
from dp_basicsr.options.reading import TEXT_KEYS
from dp_basicsr.runs import start
from dp_basicsr.runs.start import start_run
from dp_basicsr.utils.arguments import model_file

import pytest
import torch

from tests.support.networks import network_file
from tests.support.options import parse_options

MINIMAL = """
name: small
model_type: PSNRModel
scale: 4
num_gpu: 0
datasets:
  train: {name: a, type: PairedImageDataset, dataroot_gt: ., dataroot_lq: ., io_backend: {type: disk}, gt_size: 32,
          use_hflip: true, use_rot: true, num_worker_per_gpu: 0, batch_size_per_gpu: 2}
  val_2: {name: b, type: PairedImageDataset, dataroot_gt: ~/gt, dataroot_lq: ~/lq, meta_info_file: ~/a.txt,
          io_backend: {type: disk}}
network_g: {type: RRDBNetDP, num_block: 1}
train:
  total_iter: 10
  optim_g: {type: Adam, lr: !!float 1e-4}
  scheduler: {type: MultiStepLR, milestones: [5, 8]}
  pixel_opt: {type: L1Loss}
  perceptual_opt: {type: DPLoss, eps: 1e-8}
logger: {print_freq: 100, save_checkpoint_freq: !!float 5e3}
"""


TEST_SET = "{name: c, type: PairedImageDataset, dataroot_gt: ., dataroot_lq: ., io_backend: {type: disk}}"


TEST = [f"datasets:test_1={TEST_SET}", "path={pretrain_network_g: options.yml}", "val={save_img: true}"]


@pytest.fixture
def file() -> Path:
    Path("options.yml").write_text(MINIMAL)
    return Path("options.yml")


def test_numbers_with_exponents_are_numbers(file: Path) -> None:
    """PyYAML reads `1e-4` as text, BasicSR's files write `!!float 1e-4`: both are numbers here."""
    train = read_options(file)["train"]
    assert train["optim_g"]["lr"] == 1e-4
    assert train["perceptual_opt"]["eps"] == 1e-8
    assert train["total_iter"] == 10
    assert isinstance(train["total_iter"], int)


def test_an_alias_is_a_copy(file: Path) -> None:
    """`val` and `test` may be one set in the file; each is completed with its own phase."""
    aliases = MINIMAL.replace("val_2:", "val_2: &set").replace("network_g:", "  test_1: *set\nnetwork_g:")
    file.write_text(aliases)
    here = [*TEST[1:], *(f"datasets:test_1:{key}" for key in ("dataroot_gt=.", "dataroot_lq=.", "meta_info_file=~"))]
    datasets = parse_options(["-opt", str(file), "--force_yml", *here], is_train=False)["datasets"]
    assert (datasets["val_2"]["phase"], datasets["test_1"]["phase"]) == ("val", "test")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("3", 3), ("0.5", 0.5), ("true", True), ("~", None), ("[1, 2]", [1, 2]), ("{a: 1}", {"a": 1}),
     ("010", 10), ("-08", -8), ("1_000", 1000), ("0x10", 16), ("1_0e-1", 1.0), ("1:30", "1:30"), ("1:30.5", "1:30.5"),
     ("-.5E+2", -50.0), ("net.pth", "net.pth"), ("a=b", "a=b"), ("1e", "1e"),
     ("._", "._"), ("0x_", "0x_")],
)  # fmt: skip
def test_override_reads_values_as_yaml(text: str, value: object, file: Path) -> None:
    """pyyaml#365: 010 was eight."""
    opt = read_options(file)
    override(opt, [f"train:new={text}", f"train:scheduler={text}"])
    assert opt["train"]["new"] == value
    assert type(opt["train"]["scheduler"]) is type(value)


def at(opt: Any, path: list[str]) -> Any:
    return reduce(getitem, path, opt)


NAMES = ["2023-10-29", "2024_01_01", "007", "1e3", "no", "12:30:00", "0x10", ".5", "true", "x=1", "a: b", "e #1",
         "#p", "&p", "f, g", "*j", '"k', "'k", "& n", "% o", "!p", "- q", "@s", "`t", "|", ">", "a=9-b=8.pth",
         "a:b"]  # fmt: skip


@pytest.mark.parametrize("key", ["name", "datasets:val_2:dataroot_gt"])
def test_names_are_text_however_they_look(key: str, file: Path) -> None:
    """ultralytics#6034, whose run 2023-10-29 was called 1984, and hydra#266: = in the name of a checkpoint."""
    path = key.split(":")
    for name in NAMES:
        opt = read_options(file)
        override(opt, [f"{key}={name}"])
        assert at(opt, path) == name
    for name in NAMES[:9]:  # the others need quotes in a file
        file.write_text(f"{{{key.replace(':', ': {')}: {name}{'}' * len(path)}")
        assert at(read_options(file), path) == name
    opt = read_options(file)
    for text, value in (("~", None), ("", None), ("'~'", "~"), ('"a #b"', "a #b"), ("[h]", ["h"])):
        override(opt, [f"{key}={text}"])
        assert at(opt, path) == value


def test_the_keys_of_names_are_the_schema_s() -> None:
    models = [schema.OptionFile, schema.Dataset, *schema.DATASETS.values(), schema.Val, schema.Paths]
    hints = [item for model in models for item in get_type_hints(model, include_extras=True).items()]
    named = {key for key, hint in hints if re.match("(?!dict).*(_folder_name|expanduser)", repr(hint))}
    assert named | set(schema.Wandb.model_fields) | {"filename_tmpl"} == TEXT_KEYS


@pytest.mark.parametrize("text", ["{}x4", "{}", "'{}x4'", "x_{}"])
def test_a_template_is_text(text: str) -> None:
    """OSEDiff#74: the names of LSDIR's LQ, given on the command line; YAML takes braces for a mapping."""
    opt: Any = {}
    override(opt, [f"datasets:train:filename_tmpl={text}"])
    assert opt["datasets"]["train"]["filename_tmpl"] == text.strip("'")


@pytest.mark.parametrize(
    ("plain", "odd", "sign"),
    [("  a: 1\n  b", "  a: 1\n \u00a0b", "no-break space .U.00A0"), ("b: 1", "b\uff1a1", "fullwidth colon"),
     ("b: 1", "b:\u20031", "em space"), ("b: 1", "b\u200b 1", "zero width space")],
)  # fmt: skip
def test_a_sign_that_looks_like_another_is_named(plain: str, odd: str, sign: str, file: Path) -> None:
    """nmstate#2051: no-break spaces, from a web page, in the indentation."""
    text = "train:\n  a: 1\n  b: 1\n  c: 1\n"
    assert plain in text
    file.write_text(text.replace(plain, odd, 1))
    with pytest.raises(UserError, match=f"not valid YAML: .*; line 3 has a {sign}.*: type the plain sign"):
        read_options(file)


@pytest.mark.parametrize("text", ["a:\n\tb: 1\n", "a: 1\t# x\n", "a:\t1\n"])
def test_a_tab_and_blanks_that_the_shell_split_get_advice(text: str, file: Path) -> None:
    """BotLi#195 and hydra#836."""
    file.write_text(text)
    with pytest.raises(UserError, match=r"\(line [12], column \d\); type spaces instead of the tab$"):
        read_options(file)
    with pytest.raises(UserError, match="needs quotes in a shell: 'a:b="):
        override({}, ["train:scheduler:milestones=[2,", "3]"])


def test_a_colon_without_a_blank_in_braces_gets_advice(file: Path) -> None:
    for text in ("{type:Adam,lr:1e-3}", "{type: Adam, lr:1e-3}"):
        with pytest.raises(UserError, match=r"the value: line 1: (type:Adam|lr:1e-3) needs a blank behind the colon$"):
            override({}, [f"train:optim_g={text}"])
    file.write_text("a:b:\n  {'c:d', e: 1, 'f:g':, h:i: 2}\n")
    assert read_options(file) == {"a:b": {"c:d": None, "e": 1, "f:g": None, "h:i": 2}}


@pytest.mark.parametrize("text", ["[b] c", "a: b", "%20", "@home", "{a} b", '"a" b', "*a/b", "'\u2028'\n  a: b: c"])
def test_a_text_that_needs_quotes_gets_advice(text: str, file: Path) -> None:
    """r-lib/yaml#117."""
    file.write_text(f"path:\n  root: {text}\n")
    with pytest.raises(UserError, match=r"not valid YAML: .*; if this is a text, put it into single quotes$"):
        read_options(file)


def test_a_path_that_yaml_cuts_at_a_comment_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.getcwd())
    Path("data/a #1/gt").mkdir(parents=True)
    for text in ("'data/a #1/gt'", "data/a # 1/gt", "data/a #2/gt", "data/a"):
        file.write_text(f"name: x\ndataroot_gt: {text}\n")
        assert read_options(file)["dataroot_gt"] == ("data/a #1/gt" if "'" in text else "data/a")
    for text in ("data/a #1/gt", "~/data/a #1/gt  "):
        file.write_text(f"name: x\ndataroot_gt: {text}\n")
        with pytest.raises(UserError, match="line 2: #1/gt is a comment: quote the path"):
            read_options(file)


def test_a_second_document_gets_advice(file: Path) -> None:
    file.write_text("a: 1\n---\nb: 2\n")
    with pytest.raises(UserError, match=r"another document \(line 2, .*; a file is one run: take the --- out, or put"):
        read_options(file)


def test_a_pipe_is_no_option_file_and_the_way_is_told(file: Path) -> None:
    """cow#466: `-opt <(sed ...)`."""
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="not a regular file; write it to one, or change keys with --force_yml"):
        read_options(file)


@pytest.mark.parametrize("path", [r"D:\data", r"C:\Users", r"C:\x"])
def test_a_path_of_windows_in_double_quotes_gets_advice(path: str, file: Path) -> None:
    file.write_text(f'a: "{path}"\n')
    with pytest.raises(UserError, match=r"line 1, .*; in double quotes \\ starts an escape: write a path in single"):
        read_options(file)


@pytest.mark.parametrize("entry", ["train:total_iter", "=3", "train::a=3", "name:x=3", "train:a=[1"])
def test_an_override_that_leads_nowhere_is_refused(entry: str, file: Path) -> None:
    with pytest.raises(UserError, match="--force_yml"):
        override(read_options(file), [entry])


def test_an_override_makes_the_sections_that_a_file_lacks() -> None:
    """NeMo-RL#785; ``path:resume_schedule=options``, which a message advises, was refused without a ``path:``."""
    opt: dict[str, Any] = {"name": "run", "val": None}
    override(
        opt, ["path:strict_load_g=false", "val:metrics:psnr:type=calculate_psnr", "val:metrics:psnr:crop_border=4"]
    )
    psnr = {"type": "calculate_psnr", "crop_border": 4}
    assert opt == {"name": "run", "val": {"metrics": {"psnr": psnr}}, "path": {"strict_load_g": False}}


def test_option_files_cannot_run_code(file: Path) -> None:
    opt = read_options(file)
    override(opt, ["name=[__import__('os').system('touch ran')]"])
    assert opt["name"] == ["__import__('os').system('touch ran')"]
    for code in ("object/apply:os.system ['touch ran']", "name:os.system"):
        file.write_text(MINIMAL.replace("name: small", f"name: !!python/{code}"))
        with pytest.raises(UserError, match="python/"):
            read_options(file)
    assert not Path("ran").exists()


# A few lines that expand to a million values.
LAUGHS = "a: &a [1]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "line 1"),
        ("- a", "mapping"),
        ("# nothing", "expected a mapping of options, got none"),  # omegaconf#297
        ("{a: 1, a: 2}", "duplicate key 'a' .line 1, column 8"),
        ("a: !!int x", "invalid literal"),
        ("a: !include b.yml", "copy the file, or change keys with --force_yml"),  # yacs#32
        ("a: 2020-13-45", "month"),
        ("&a [*a]", "alias within itself"),
        ("[" * 1000, "nested too deeply"),
        ("a: [0x" + "f" * 5000 + "]", "at most 63 bits"),
        ("{0x" + "f" * 900 + ": 1}", "at most 63 bits"),
        (LAUGHS, "at most 100000 values"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_not_an_option_file_is_refused(content: str | None, message: str, file: Path) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_options(file)
    assert "\n" not in str(caught.value)


def test_an_option_file_of_another_form_of_unicode_is_told(file: Path) -> None:
    file.rename(file.with_name("cafe\u0301.yml"))
    with pytest.raises(UserError, match=r"shipped ones: .*; names that look alike differ in Unicode's form"):
        read_options(file.with_name("caf\xe9.yml"))
    for kind in ("training_states/5.state", "options.json"):
        (run := file.with_name("run")).joinpath(kind).parent.mkdir(parents=True, exist_ok=True)
        (run / kind).touch()
    for asked in (run, run / "train.yml"):
        with pytest.raises(UserError, match="NAME/options.json; the newest options.json there is .*run/options.json$"):
            read_options(asked)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_an_option_file_of_a_windows_editor(encoding: str, file: Path) -> None:
    expected = read_options(file)
    file.write_bytes(f"# 训练\n{file.read_text()}".replace("\n", "\r\n").encode(encoding))
    if encoding == "utf-8-sig":
        assert read_options(file) == expected
    else:
        with pytest.raises(UserError, match="it is not UTF-8 .*; save it as UTF-8"):
            read_options(file)


def test_a_network_in_place_of_an_option_file_gets_the_command() -> None:
    """ESRGAN#58: `test.py models/RRDB_ESRGAN_x4.pth`."""
    for name, quoted in (("net.pth", "net.pth"), ("my net.pth", "'my net.pth'")):
        network_file(name)
        with pytest.raises(UserError, match=f"if it is a network, upscale with it: `.*upscale -m {quoted} -i IMAGES`"):
            read_options(name)
    with pytest.raises(UserError, match="Is a directory; .*a run's: experiments/NAME/options.json"):
        read_options(".")


def test_a_test_set_without_originals_is_told_its_type(file: Path) -> None:
    """ming053l/DRCT#10: dataroot_gt commented out, with the type of pairs."""
    entries = [*TEST[1:], f"datasets:test_1={TEST_SET.replace('dataroot_gt: ., ', '')}"]
    with pytest.raises(UserError, match="test_1:dataroot_gt: .*images without GT: type SingleImageDataset"):
        parse_options(["-opt", str(file), "--force_yml", *entries], is_train=False)


def test_a_test_with_a_training_s_sets_alone_gets_the_way(file: Path) -> None:
    with pytest.raises(UserError, match="test set, got none; datasets:val_2 is for training: give .* the name test"):
        parse_options(["-opt", str(file), "--force_yml", *TEST[1:]], is_train=False)


def test_a_network_in_the_box_is_found_by_its_name(file: Path) -> None:
    name = "compact_x4_l1.safetensors"
    opt = read_options(file, [f"network_g={{type: FromFile, path: {name}}}", f"path:pretrain_network_g={name}"])
    assert opt["network_g"]["path"] == opt["path"]["pretrain_network_g"] == str(model_file(name)) != name
    # Of a run's options.json from another machine.
    opt = read_options(file, [f"network_g={{type: FromFile, path: /there/dp_basicsr/networks/{name}}}"])
    assert opt["network_g"]["path"] == str(model_file(name))


def test_derived_options(file: Path) -> None:
    opt = parse_options(["-opt", str(file), "--debug", "--local-rank=1"])
    assert opt["name"] == "debug_small"
    assert opt["path"]["models"] == str(Path("experiments/debug_small/models").absolute())
    home = {"dataroot_gt": str(Path.home() / "gt"), "meta_info_file": str(Path.home() / "a.txt")}
    assert ({"phase": "val", "scale": 4} | home).items() <= opt["datasets"]["val_2"].items()
    assert opt["logger"]["print_freq"] == 1
    assert (opt["dist"], opt["rank"], opt["world_size"]) == (False, 0, 1)
    assert isinstance(opt["manual_seed"], int)
    test_opt = parse_options(["-opt", str(file), "--local_rank", "0", "--force_yml", *TEST], is_train=False)
    assert test_opt["path"]["visualization"] == str(Path("results/small/visualization").absolute())


def test_a_launcher_that_did_not_start_us_is_refused(file: Path) -> None:
    for launcher, program in (("pytorch", "torchrun"), ("slurm", "srun")):
        with pytest.raises(UserError, match=program):
            parse_options(["-opt", str(file), "--launcher", launcher])


def test_repeated_overrides_accumulate(file: Path) -> None:
    twice = ["-opt", str(file), "--force_yml", "name=two", "manual_seed=2", "--force_yml", "num_gpu=0"]
    opt = parse_options(twice)
    assert (opt["name"], opt["manual_seed"], opt["num_gpu"]) == ("two", 2, 0)


def test_an_alias_within_an_override_is_a_copy(file: Path) -> None:
    opt = read_options(file)
    override(opt, ["model_type=[&a {b: 1}, *a]"])
    assert opt["model_type"][0] is not opt["model_type"][1]
    with pytest.raises(UserError, match="alias within itself"):
        override(opt, ["model_type=&a [*a]"])


def test_only_training_has_a_check(file: Path) -> None:
    with pytest.raises(SystemExit):
        parse_options(["-opt", str(file), "--check"], is_train=False)
    for words, check in ((["--check"], True), ([], False)):
        args = parse_command_line("", ["-opt", str(file), *words])
        assert start_run(read_given_options(args), args).check is check


def test_a_run_on_the_cpu_by_auto_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ultralytics/yolov3#517."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, is_told in ((["--force_yml", "num_gpu=auto"], True), (["--force_yml", "num_gpu=0"], False)):
        args = parse_command_line("", ["-opt", str(file), *words])
        notes = "\n".join(start_run(read_given_options(args), args).notes)
        assert ("num_gpu: auto: no GPU" in notes) is is_told


@pytest.mark.parametrize(("bind", "cpus", "is_told"), [("true", 1, True), ("close", 2, False), ("false", 1, False)])
def test_a_run_that_openmp_binds_to_one_cpu_is_told(
    bind: str, cpus: int, is_told: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HivisionIDPhotos#211, a sibling: its loader workers run on the same CPU."""
    monkeypatch.setenv("OMP_PROC_BIND", bind)
    monkeypatch.setattr(start, "available_cpus", lambda: cpus)
    args = parse_command_line("", ["-opt", str(file)])
    assert ("OMP_PROC_BIND keeps" in "\n".join(start_run(read_given_options(args), args).notes)) is is_told


def test_a_run_uses_the_schema_s_defaults_and_integer_counts(file: Path) -> None:
    """Code that reads a key must not define a default."""
    opt = parse_options(["-opt", str(file), "--force_yml", "val={val_freq: 5, save_img: false}"])
    train, data = opt["train"], opt["datasets"]["train"]
    assert (train["amp"], train["grad_accumulation"], train["max_nonfinite"]) == ("none", 1, 10)
    assert (opt["val"]["threads"], opt["val"]["tile_overlap"], opt["logger"]["keep_best"]) == (2, 16, False)
    assert (data["on_bad_image"], data["max_bad_share"], data["dataset_enlarge_ratio"]) == ("stop", 0.01, 1)
    assert data["persistent_workers"], "starting them anew takes longer than an epoch of few images (open_clip#703)"
    assert repr(opt["logger"]["save_checkpoint_freq"]) == "5000"
    assert "tile" not in opt["val"]
    assert "mean" not in data, "what is nothing by default stays absent: BasicSR asks whether a key is there"


def test_the_home_folder_that_bash_puts_for_a_tilde_is_none() -> None:
    """``--force_yml val=~`` unquoted; with a section before the key, bash leaves the tilde alone."""
    opt: dict[str, Any] = {"val": {"val_freq": 1}, "path": {}}
    override(opt, [f"val={os.path.expanduser('~')}", "path:root=/home"])
    assert opt == {"val": None, "path": {"root": "/home"}}
