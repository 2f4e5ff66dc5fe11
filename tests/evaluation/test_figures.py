"""The paper's figures: their content, and refused input."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dp_basicsr.archs.perceptual_arch import FrozenFeatures, ResNetFeatures, load_features
from dp_basicsr.evaluation.crops import Crop, images_of, score_lines
from dp_basicsr.evaluation.crops import compare_crops as compare_crops_of
from dp_basicsr.evaluation.evaluate import evaluate
from dp_basicsr.evaluation.features import feature_maps
from dp_basicsr.evaluation.figures import save_figure
from dp_basicsr.evaluation.files import write_evaluation
from dp_basicsr.evaluation.matching import BICUBIC, Method, find_test_set
from dp_basicsr.images.write import LONGEST_SIDE
from dp_basicsr.report.images import make_viewer

import cv2
import fontTools.fontBuilder
import fontTools.pens.ttGlyphPen
import matplotlib.figure
import matplotlib.font_manager
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageCms

from scripts import compare_crops, plot_features

Refused = Callable[[Any, list[str]], str]
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


def test_the_maps_have_the_same_depth_and_shape_and_end_at_the_second_bottleneck() -> None:
    """Fig. 3: 256 channels, after a ReLU, at a quarter of the size."""
    maps = feature_maps(IMAGE, "random")
    assert list(maps) == ["VGG19 relu3_3", "ResNet-50 conv2_2"]
    assert {tuple(features.shape) for features in maps.values()} == {(256, 16, 12)}
    assert all((features >= 0).all() for features in maps.values())
    # Its second bottleneck is that of the stage that DPLoss uses.
    x = torch.from_numpy(IMAGE[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    stage = FrozenFeatures(load_features("resnet50", "random", {"layer1.1": "second", "layer1": "last"}), ["second"])
    features = stage(x)
    assert torch.equal(features["second"][0], maps["ResNet-50 conv2_2"])
    # Folded: the figure shows the published network, with its batch-norm.
    torch.testing.assert_close(features["last"], ResNetFeatures(["layer1"], "resnet50", "random")(x)["layer1"])


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text in saved figures."""
    found: list[str] = []
    save = matplotlib.figure.Figure.savefig

    def note(self: matplotlib.figure.Figure, *args: object, **kwargs: object) -> None:
        found.extend(axis.get_title() for axis in self.axes)
        found.extend(text.get_text() for text in self.texts)
        save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", note)
    return found


def test_random_weights_are_named_in_the_picture(titles: list[str]) -> None:
    cv2.imwrite("image.png", IMAGE)
    assert plot_features.main(["image.png", "--weights", "random", "--channels", "1", "256", "--out", "f.png"]) == 0
    assert titles.count("channel 256") == 2
    assert any("RANDOM" in title for title in titles)
    assert cv2.imread("f.png").std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image.png"], "put vgg19"),
        (["image.png", "--channels", "0", "--weights", "random"], "from 1 to 256, got 0"),
        (["nothing.png", "--weights", "random"], "image nothing.png: no such file or folder in /"),
        (["image.png", "-o", "features.xyz"], "features.xyz: expected a name that ends with ."),
    ],
)
def test_mistakes_about_features_are_named(arguments: list[str], message: str, refused: Refused) -> None:
    cv2.imwrite("image.png", IMAGE)
    assert message in refused(plot_features.main, arguments)
    assert not list(Path().glob("features*"))


@pytest.fixture
def evaluation(pairs: Path) -> Path:
    methods = [Method(BICUBIC, None), Method("Same", pairs / "GT")]
    result = evaluate([find_test_set(pairs / "GT")], methods, 4, ("psnr_rgb", "psnr_y", "ssim_y"))
    return write_evaluation(result, Path("evaluation"))


def test_crops_are_drawn_side_by_side_with_their_metrics(evaluation: Path, titles: list[str]) -> None:
    assert compare_crops.main([str(evaluation), "image2", "--crop", "10,20,32,24", "--out", "new/crops.png"]) == 0
    assert titles[0] == "image2 (pairs)"
    assert [title.splitlines()[0] for title in titles[1:4]] == [BICUBIC, "Same", "Original"]
    assert "PSNR inf (RGB) inf (Y)" in titles[2]
    assert [path.name for path in Path("new").iterdir()] == ["crops.png"]
    assert Path("new/crops.png").stat().st_size > 10_000


def test_pictures_are_shown_in_the_colours_of_their_profiles(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Display P3 was shown as sRGB. A result without a profile has values in the colours of the original."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = srgb.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    for method, profile in (("GT", exchanged), ("Own", srgb), ("None", None)):
        (pairs / method).mkdir(exist_ok=True)
        for path in (pairs / "GT").iterdir():
            with Image.open(path) as image:
                image.load()
            image.save(pairs / method / path.name, icc_profile=profile)
    methods = [Method(name, pairs / name) for name in ("Own", "None")]
    evaluation = evaluate([find_test_set(pairs / "GT")], methods, 4, ("psnr_rgb",))
    panels, drawn = list[np.ndarray](), list[np.ndarray]()
    for panel in make_viewer(images_of(evaluation, "image2"), evaluation, 101).sources:
        data = np.frombuffer(base64.b64decode(panel.uri.partition(",")[2]), np.uint8)
        panels.append(cv2.imdecode(data, cv2.IMREAD_COLOR).astype(int))
    gt = cv2.imread(str(pairs / "GT/image2.png")).astype(int)
    assert (panels[2] == gt).all()
    for panel in panels[3:]:
        assert np.abs(panel - gt[..., ::-1]).max() <= 1
    assert np.abs(panels[0].mean((0, 1)) - gt[..., ::-1].mean((0, 1))).max() < 2
    monkeypatch.setattr(
        "dp_basicsr.evaluation.crops.save_figure",
        lambda figure, *_, **__: drawn.extend(np.asarray(axis.images[0].get_array()) for axis in figure.axes),
    )
    compare_crops_of(images_of(evaluation, "image2"), evaluation, Crop(0, 0, *gt.shape[1::-1]), Path("crops.png"))
    for image, expected in zip(drawn, (gt, gt[..., ::-1], gt, gt), strict=True):
        assert np.abs(image.astype(int) - expected).max() <= 1


def test_crops_of_a_long_image_are_as_wide_as_matplotlib_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib#16234; drawing 700,000 pixels did not end."""
    Path("GT").mkdir()
    cv2.imwrite("GT/long.png", np.zeros((8, 6000, 3), np.uint8))
    evaluation, widths = evaluate([find_test_set(Path("GT"))], [Method("A", Path("GT"))], 4, ("psnr_rgb",)), []
    monkeypatch.setattr(
        "dp_basicsr.evaluation.crops.save_figure", lambda figure, *_, dpi, **__: widths.append(figure.bbox.width)
    )
    compare_crops_of(images_of(evaluation, "long"), evaluation, Crop(0, 0, 8, 8), Path("crops.png"))
    assert widths[0] / 100 * 150 < 65_536


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_figure_is_drawn_smaller_where_its_format_ends(suffix: str) -> None:
    """sdnext#1048: `crops -o a.webp` of a long image, and `features` of many channels, were tracebacks."""
    save_figure(Figure(figsize=(700, 0.1)), Path(f"a{suffix}"), dpi=100)
    with Image.open(f"a{suffix}") as image:
        assert 16_000 < image.width <= LONGEST_SIDE.get(str(image.format), 65_535)


def test_a_method_may_be_called_original(pairs: Path, titles: list[str]) -> None:
    """It would be drawn as the original itself."""
    evaluation = evaluate([find_test_set(pairs / "GT")], [Method("Original", pairs / "GT")], 4, ("psnr_rgb",))
    viewer = make_viewer(images_of(evaluation, "GT/image2.png"), evaluation, 90)
    assert [panel.name for panel in viewer.sources[-2:]] == ["Original", "GT"]
    write_evaluation(evaluation, Path("evaluation"))
    assert compare_crops.main(["evaluation", "image2", "--crop", "10,20,32,24", "--out", "crops.png"]) == 0
    assert titles[1:3] == ["Original\nPSNR inf (RGB)", "GT"]


def font_with(letter: str, path: Path) -> Path:
    """Write a font of this letter, a square."""
    builder = fontTools.fontBuilder.FontBuilder(1000, isTTF=True)
    pen = fontTools.pens.ttGlyphPen.TTGlyphPen(None)
    for place, draw in (((0, 0), pen.moveTo), ((0, 700), pen.lineTo), ((700, 700), pen.lineTo), ((700, 0), pen.lineTo)):
        draw(place)
    pen.closePath()
    glyph = pen.glyph()
    builder.setupGlyphOrder([".notdef", "letter"])
    builder.setupCharacterMap({ord(letter): "letter"})
    builder.setupGlyf({".notdef": glyph, "letter": glyph})
    builder.setupHorizontalMetrics({".notdef": (800, 0), "letter": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Of the test", "styleName": "Regular", "psName": "OfTheTest"})
    builder.setupOS2(sTypoAscender=800)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.mark.parametrize("has_font", [False, True])
def test_names_are_shown_in_fonts_that_have_their_letters(
    pairs: Path, has_font: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TLE#165: matplotlib's own font has no Chinese. A name between dollars was a formula, or a traceback.

    dupeguru#210: so was a name that is not UTF-8.
    """
    Path("broken.ttf").touch()
    fonts = ["broken.ttf"]
    if has_font:
        fonts.append(str(font_with("\u72d2", Path("letter.ttf"))))
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", lambda: fonts)
    result = evaluate([find_test_set(pairs / "GT")], [Method("\u72d2 $\\x^$\udce9", pairs / "GT")], 4, ("psnr_y",))
    write_evaluation(result, Path("evaluation"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare_crops.main(["evaluation", "image0", "--crop", "0,0,8,8", "--out", "crops.svg"]) == 0
    assert ("no font here has \u72d2" in capsys.readouterr().err) == (not has_font)
    assert ('id="OfTheTest' in Path("crops.svg").read_text(encoding="utf-8")) == has_font


def test_a_crop_is_cut_in_pixels_of_the_original() -> None:
    assert np.array_equal(Crop.parse("10,20,30,5").of(IMAGE), IMAGE[20:25, 10:40])
    assert score_lines({"psnr_rgb": 26.694, "psnr_y": 28.43, "lpips_alex": None}) == ["PSNR 26.69 (RGB) 28.43 (Y)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image9", "--crop", "0,0,8,8"], "'image9' not found; expected image0, image1"),
        (["image0", "--crop", "140,0,8,8"], "is not inside the 144 x 160"),
        (["image0", "--crop", "1,2,3"], "expected left,top,width,height"),
        (["image0", "--crop", "0,0,8,8", "-o", "evaluation/table.md/x"], "cannot write evaluation/table.md/x: "),
        (["image0", "--crop", "0,0,8,8", "-o", "crops.xyz"], "crops.xyz: expected a name that ends with ."),
    ],
)
def test_mistakes_about_crops_are_named(evaluation: Path, arguments: list[str], message: str, refused: Refused) -> None:
    assert message in refused(compare_crops.main, [str(evaluation), *arguments])


def test_a_missing_extra_is_named(evaluation: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    error = ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    def missing(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("dp_basicsr.evaluation.crops.compare_crops", missing)
    command = [str(evaluation), "image0", "--crop", "0,0,8,8"]
    text = refused(compare_crops.main, command)
    assert "matplotlib is not installed: pip install 'dp_basicsr[plots]'" in text
    error.name = "another"
    assert "pip install" not in refused(compare_crops.main, command)
