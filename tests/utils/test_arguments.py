"""Command lines: one spelling of their options, and advice in the way in which the program was started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from dp_basicsr.utils.arguments import ROOT, Parser, advise, option_file, started_as

import pytest


@pytest.fixture
def parser() -> Parser:
    parser = Parser("Do it.\n\n  %(prog)s -m a\n  %(prog)s -m b")
    parser.add_model()
    parser.add_output(type=Path)
    parser.add_argument("--force-yml", nargs="+", default=[], help="values")
    parser.add_argument("--number", type=int, help="a number")
    parser.add_argument("--size", type=int, default=3, help="a size")
    return parser


def test_dashes_and_underlines_are_the_same_and_output_has_three_names(parser: Parser) -> None:
    for spelling in ("-m", "--model-path", "--model_path", "--model"):
        assert parser.parse_args([spelling, "a", "b"]).model_path == [Path("a"), Path("b")]
    for words in (["-o", "x"], ["--output=x"], ["--out", "x"], ["-ox"]):
        assert parser.parse_args(words).output == Path("x")


def test_an_option_given_twice_loses_nothing(parser: Parser, refused: Callable[..., str]) -> None:
    parser.add_input()
    parser.add_option_file(required=False)
    given = parser.parse_args(["-m", "a", "--model_path", "b", "c", "--size", "4", "--size", "5", "-i", "d", "-i", "d"])
    assert (given.model_path, given.size, given.input) == ([Path("a"), Path("b"), Path("c")], 5, "d")
    for option in ("-i", "-opt"):
        assert "expected one, got a and b" in refused(parser.parse_args, [option, "a", option, "b"])


def test_a_value_that_begins_with_a_dash_gets_advice(parser: Parser, refused: Callable[..., str]) -> None:
    for words in (["-o", "-x"], ["--number"], ["-m", "-x"]):
        assert "after an equals sign: --suffix=-x4" in refused(parser.parse_args, words)
    assert parser.parse_args(["-o=-x"]).output == Path("-x")


def test_dashes_of_web_pages_are_those_of_options(parser: Parser) -> None:
    """csxmli2016/MARCONet#26."""
    for word in ("\u2014size=4", "\u2013-size=4", "\u2212\u2212size=4", "-\u2011size=4"):
        assert parser.parse_args([word]).size == 4
    assert parser.parse_args(["\u2013o", "x"]).output == Path("x")
    assert parser.parse_args(["-o", "\u2014x"]).output == Path("\u2014x"), "a name"


def test_keys_of_the_option_file_get_advice(parser: Parser, refused: Callable[..., str]) -> None:
    """wandb#7737: what the agent of a sweep adds."""
    for word in ("--train:optim_g:lr=0.1", "train:optim_g:lr=0.1", "--lr=0.1"):
        assert "--force_yml train:optim_g:lr=1e-4" in refused(parser.parse_args, [word])


def test_a_value_keeps_its_underlines(parser: Parser) -> None:
    assert parser.parse_args(["--force_yml", "a_b=c_d", "--out=e_f"]).force_yml == ["a_b=c_d"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--", "--model_path"])


def test_the_home_folder_is_meant_where_the_shell_left_its_sign(
    parser: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")  # Windows
    given = parser.parse_args(["--output=~/out", "-m=~/a.pth", "--force_yml", "a=~/b", "path:resume_state=~", "a~/b"])
    assert (given.output, given.model_path) == (Path("/home/me/out"), [Path("/home/me/a.pth")])
    assert given.force_yml == ["a=/home/me/b", "path:resume_state=~", "a~/b"]


def test_files_of_a_pattern_get_advice(parser: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.png").touch()
    for words, is_advised in (
        (["-o", "a.png", "b.png"], True),
        (["-o", "a.png", "b"], False),
        (["-o", "a", "-x", "b.png"], False),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        assert ("give the folder" in capsys.readouterr().err) is is_advised


def test_help_shows_defaults_that_say_something_and_keeps_examples(parser: Parser) -> None:
    with started_as("dp-basicsr", "upscale"):
        text = Parser("Do it.\n\n  %(prog)s -m a\n  %(prog)s -m b").format_help()
    assert text.startswith("usage: dp-basicsr upscale [-h]")
    assert "  dp-basicsr upscale -m a\n  dp-basicsr upscale -m b\n" in text
    assert "(default: 3)" in parser.format_help()
    assert "None" not in parser.format_help()


def test_the_option_file_is_positional_or_an_option(refused: Callable[..., str]) -> None:
    parser = Parser(None)
    parser.add_option_file()
    for words in (["a.yml"], ["-opt", "a.yml"], ["--opt", "a.yml"], ["-opt=a.yml"]):
        assert parser.parse_args(words).opt == "a.yml"
    for words in ([], ["a.yml", "-opt", "b.yml"]):
        assert "expected one option file" in refused(parser.parse_args, words)
    # Its value would be a second file.
    assert "unrecognized arguments: --name" in refused(parser.parse_args, ["-opt", "a.yml", "--name", "x"])


@pytest.mark.parametrize("name", ["train_esrgan_dp", "train_esrgan_dp.yml", "options/train_esrgan_dp.yml"])
def test_a_shipped_option_file_is_named_anywhere(name: str) -> None:
    assert option_file(name) == str(ROOT / "options/train_esrgan_dp.yml")
    assert option_file("none" * 200) == "none" * 200
    Path("train_esrgan_dp").touch()
    assert option_file("train_esrgan_dp") == "train_esrgan_dp"


def test_advice_is_given_in_the_way_the_program_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert advise("train", "-opt a.yml") == "dp-basicsr train -opt a.yml"
    for system, quoted in (("linux", "'my run/a.yml'"), ("win32", '"my run/a.yml"')):
        monkeypatch.setattr(sys, "platform", system)
        assert advise("train", ["-opt", "my run/a.yml"]) == f"dp-basicsr train -opt {quoted}"
    with started_as("python -m dp_basicsr", "data", "lr"):
        assert advise("train") == "python -m dp_basicsr train"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts/demo.py")])
    assert advise("train") == "python dp_basicsr/train.py"


@pytest.mark.parametrize("words", [["-o", ""], ["--output="], ["-i", "a", ""], ["-o", "b", "-m", ""]])
def test_an_unset_variable_is_not_the_current_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(None)
    parser.add_input(nargs="+")
    parser.add_output(type=Path)
    parser.add_model()
    parser.add_argument("--suffix", default="")
    assert parser.parse_args(["-i", "a", "-o", "b", "--suffix", ""]).suffix == ""
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert "expected a value, got nothing, as of a variable that is not set" in capsys.readouterr().err


def test_a_missing_blank_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """waifu2x-ncnn-vulkan#185."""
    parser = Parser(None)
    parser.add_argument("-o")
    parser.add_argument("-s")
    with pytest.raises(SystemExit):
        parser.parse_args(["-o", "output.png-s", "2"])
    assert "unrecognized arguments: 2 (a blank is missing within output.png-s)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args([""])  # of a shell's variable that is empty
    assert "unrecognized arguments" in capsys.readouterr().err
