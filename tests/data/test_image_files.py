"""Images: from every source the same input, fitted and preprocessed, with their labels."""

from __future__ import annotations

import io
import sys
import zipfile

import numpy as np
import pytest
from command import MODELS
from nets.build import net
from pictures import IMAGE, NCHW, TWO

import spa_onnx
from spa_onnx.data.preprocess import PRESETS, parse
from spa_onnx.data.samples import read_samples
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution.session import open_session

Image = pytest.importorskip("PIL.Image")


NHWC = net(
    "float[N,8,6,3] image",
    "float[5,3,1,1] w",
    "t = Transpose<perm=[0,3,1,2]>(image) y = Conv(t, w)",
    "float[N,5,8,6] y",
)()


BYTES = net("uint8[N,8,6,3] image", "float[3,4] w", "f = Cast<to=1>(image) y = MatMul(f, w)", "float[N,8,6,4] y")()


SIGNED = net("int8[N,8,6,3] image", "float[3,4] w", "f = Cast<to=1>(image) y = MatMul(f, w)", "float[N,8,6,4] y")()


GREY = net("float[N,1,8,6] image", "float[5,1,1,1] w", "y = Conv(image, w)", "float[N,5,8,6] y")()


FREE = net("float[N,3,H,W] image", "float[5,3,1,1] w", "y = Conv(image, w)", "float[N,5,H,W] y")()


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3)).astype(np.uint8)


def write_images(folder, pixels=PIXELS, name="{:04}.png"):
    for number, image in enumerate(pixels):
        path = folder / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/0000.png", b"no image")
        archive.writestr("notes.txt", b"no image")
    return path


def everything(samples):
    """All feeds of the only input, in the order of the labels where there are any."""
    array = np.concatenate([feed["image"] for feed in samples.feeds()])
    return array if samples.labels is None else array[np.argsort(samples.labels)]


def by_name(text):
    return parse(f"{text},labels=name")


@pytest.mark.parametrize("form", ["folder", "zip", "npz", "npz, channels first"])
@pytest.mark.parametrize(("proto", "axes"), [(NCHW, (0, 3, 1, 2)), (NHWC, (0, 1, 2, 3))], ids=["nchw", "nhwc"])
def test_pixels_of_every_source_become_the_same_input(tmp_path, form, proto, axes):
    folder = write_images(tmp_path / "images")
    source = folder
    if form == "zip":
        source = zipped(folder, tmp_path / "images.zip")
    elif form.startswith("npz"):
        source = tmp_path / "data.npz"
        np.savez(source, x=PIXELS.transpose(0, 3, 1, 2) if "first" in form else PIXELS, y=np.arange(5))
    found = read_samples(source, proto, parse("imagenet") if form.startswith("npz") else by_name("imagenet"))
    assert len(found) == 5
    expected = (PIXELS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(everything(found), expected.transpose(axes), rtol=1e-5, atol=1e-6)
    assert all(feed["image"].dtype == np.float32 for feed in found.feeds())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tf", PIXELS / 127.5 - 1),
        ("raw", PIXELS.astype(float)),
        ("mean=0.5,0.25,0,std=2", (PIXELS / 255 - [0.5, 0.25, 0]) / 2),
        ("mean=104,117,123,scale=1,order=bgr", PIXELS[..., ::-1] - np.array([104.0, 117, 123])),
        ("imagenet,std=1,mean=0", PIXELS / 255),
    ],
)
def test_presets_and_keys(tmp_path, text, expected):
    found = read_samples(write_images(tmp_path), NHWC, by_name(text))
    np.testing.assert_allclose(everything(found), expected, rtol=1e-5, atol=1e-5)


def test_quantised_inputs_take_rounded_and_clipped_values(tmp_path):
    write_images(tmp_path)
    assert (everything(read_samples(tmp_path, BYTES, by_name("raw"))) == PIXELS).all()
    assert sum(len(feed["image"]) for feed in read_samples(tmp_path, BYTES).feeds()) == 5  # bytes need no preprocessing
    how = by_name("mean=0.5,std=0.001")
    assert (
        everything(read_samples(tmp_path, SIGNED, how)) == np.clip(np.rint((PIXELS / 255 - 0.5) / 0.001), -128, 127)
    ).all()


def test_images_are_fitted_to_the_input(tmp_path):
    flat = np.full((1, 40, 20, 3), 77, np.uint8)
    write_images(tmp_path, flat)
    (feed,) = read_samples(tmp_path, NCHW, parse("raw")).feeds()
    assert feed["image"].shape == (1, 3, 8, 6)
    assert (feed["image"] == 77).all()
    (feed,) = read_samples(tmp_path, GREY, parse("raw")).feeds()
    assert feed["image"].shape == (1, 1, 8, 6)
    (feed,) = read_samples(tmp_path, FREE, parse("raw,size=10x12")).feeds()
    assert feed["image"].shape == (1, 3, 10, 12)
    (feed,) = read_samples(tmp_path, FREE, parse("raw,size=9")).feeds()
    assert feed["image"].shape == (1, 3, 9, 9)


def test_the_middle_of_an_image_is_kept(tmp_path):
    wide = np.zeros((1, 8, 30, 3), np.uint8)
    wide[:, :, 12:18] = 200
    write_images(tmp_path, wide)
    (feed,) = read_samples(tmp_path, NCHW, parse("raw")).feeds()
    assert (feed["image"] == 200).all()


def test_labels_stand_in_the_name_or_the_folder(tmp_path):
    write_images(tmp_path / "named", name="{:04}.png")
    assert sorted(read_samples(tmp_path / "named", NHWC, by_name("raw,first=1")).labels) == [1, 2, 3, 4, 5]
    assert read_samples(tmp_path / "named", NHWC, parse("raw")).labels is None
    write_images(tmp_path / "sorted", name="class_{}/a.png")
    found = read_samples(tmp_path / "sorted", NHWC, parse("raw,labels=folder"))
    np.testing.assert_array_equal(everything(found), PIXELS)
    write_images(tmp_path / "words", name="picture_{}_.png")
    write_images(tmp_path / "words", PIXELS[:1], name="none.png")
    with pytest.raises(RefusedError, match=r"no class number in the name of image none\.png"):
        read_samples(tmp_path / "words", NHWC, by_name("raw"))


def test_the_first_images_come_from_all_folders(tmp_path):
    many = np.zeros((40, 8, 6, 3), np.uint8)
    write_images(tmp_path, many, name="{:04}.png")
    labels = read_samples(tmp_path, NHWC, by_name("raw")).labels
    assert len({label // 10 for label in labels[:10]}) > 2
    assert (labels == read_samples(tmp_path, NHWC, by_name("raw")).labels).all()


def test_images_are_decoded_when_they_are_needed(tmp_path):
    write_images(tmp_path)
    samples = read_samples(tmp_path, NHWC, parse("raw")).head(2, 1)
    assert len(samples) == len(samples.feeds()) == 2
    for file in tmp_path.iterdir():
        file.write_bytes(b"gone")
    with pytest.raises(RefusedError, match=r"image 000\d\.png cannot be read"):
        samples.feeds()[0]


@pytest.mark.parametrize(
    ("proto", "text", "message"),
    [
        (NCHW, None, "holds images and input image is float32: give --preprocess imagenet, tf, unit or raw"),
        (NCHW, "imagenet,layout=nhwc", "8, 6"),
        (NCHW, "imagenet,size=9", r"say size=HEIGHTxWIDTH in --preprocess, not 9x9"),
        (FREE, "imagenet", r"float32 \[any, 3, any, any\]; say size="),
        (GREY, "imagenet", "3 values for mean, and the images have 1 channels"),
        (TWO, "imagenet", "images, which fit models with one input, and this one also has ids"),
        (
            net("float[N,6] image", "float[6,4] w", "y = MatMul(image, w)")(),
            "raw",
            "input image has 2 axes, and images need 4",
        ),
        (
            net("float[N,8,8,8] image", "float[5,8,1,1] w", "y = Conv(image, w)")(),
            "raw",
            "add layout=nchw or layout=nhwc",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(tmp_path, proto, text, message):
    write_images(tmp_path)
    with pytest.raises(
        RefusedError, match=message if text != "imagenet,layout=nhwc" else "has 6 channels in layout nhwc"
    ) as caught:
        read_samples(tmp_path, proto, parse(text) if text else None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imagenett", "'imagenett' is none of the presets imagenet, tf, unit, raw; keys mean, std"),
        ("imagenet,sise=3", "'sise=3' is none of"),
        ("mean=a", "mean=a makes no sense"),
        ("mean=1,2", "1, 3 or 4 numbers"),
        ("mean=nan", "mean=nan makes no sense"),
        ("std=0", "divided by 0"),
        ("scale=1,2", "scale=1,2 makes no sense"),
        ("layout=chw", "choose from nchw, nhwc"),
        ("size=0", "size=0 makes no sense"),
        ("size=1,2,3", "one size, or height x width"),
        ("labels=file", "choose from name, folder"),
        ("first=one", "first=one makes no sense"),
        ("", "'' is none of"),
    ],
)
def test_a_preprocessing_that_makes_no_sense_is_wrong_usage(text, words):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_preprocessing_needs_pixels(tmp_path):
    np.savez(tmp_path / "data.npz", image=PIXELS.astype(np.float32))
    with pytest.raises(UsageError, match="neither images nor uint8 arrays"):
        read_samples(tmp_path / "data.npz", NHWC, PRESETS["tf"])
    with pytest.raises(UsageError, match="preprocess is for given data"):
        spa_onnx.prune(MODELS / "digits_resnet.onnx", 0.4, preprocess="tf")


def test_without_pillow_images_are_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'spa-onnx\[images\]'"):
        read_samples(write_images_as_text(tmp_path), NCHW, PRESETS["raw"])


def write_images_as_text(folder):
    (folder / "0.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_a_damaged_zip_is_refused(tmp_path, content):
    (tmp_path / "data.zip").write_bytes(content)
    with pytest.raises(RefusedError, match=r"data\.zip is not a zip of images"):
        read_samples(tmp_path / "data.zip", NCHW, PRESETS["raw"])


def test_images_calibrate_a_model(tmp_path):
    proto = net(
        "float[N,3,8,6] image",
        "float[12,3,3,3] w1, float[12] b1, float[4,12,1,1] w2",
        "a = Conv<pads=[1,1,1,1]>(image, w1, b1) c = Relu(a) d = Conv(c, w2) e = GlobalAveragePool(d) y = Flatten(e)",
        "float[N,4] y",
    )()
    folder = write_images(tmp_path, name="{}.png")
    result = spa_onnx.prune(proto, 0.4, data=folder, preprocess="imagenet,labels=name")
    assert result.report.drift.samples == 2  # of five; the others were fitted to
    assert result.report.drift.accuracy is not None
    assert open_session(result.model).run({"image": IMAGE})[0].shape == (2, 4)


def test_a_png_of_another_kind_is_converted(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0, ..., 0]).save(buffer, "png")
    (tmp_path / "grey.png").write_bytes(buffer.getvalue())
    (feed,) = read_samples(tmp_path, NHWC, parse("raw")).feeds()
    np.testing.assert_array_equal(feed["image"][0], np.repeat(PIXELS[0, ..., :1], 3, axis=2))
