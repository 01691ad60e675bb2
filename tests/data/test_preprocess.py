"""Preprocessing: bytes stay bytes, fractions are numbers, and metadata and EXIF data are read."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net
from pictures import NCHW

from spa_onnx.data.image_metadata import ImageInputs
from spa_onnx.data.preprocess import PRESETS, Preprocess, parse
from spa_onnx.data.samples import read_samples
from spa_onnx.errors import RefusedError, UsageError

Image = pytest.importorskip("PIL.Image")

BYTES = net("uint8[N,3,8,6] image", "float[1] w", "f = Cast<to=1>(image) y = Mul(f, w)", "float[N,3,8,6] y")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3)).astype(np.uint8)


@pytest.mark.parametrize("text", ["labels=name", "first=1", "layout=nchw", "raw"])
def test_bytes_keep_their_values_unless_a_scale_mean_or_deviation_is_given(tmp_path, text):
    for number, image in enumerate(PIXELS):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (feed,) = read_samples(tmp_path, BYTES(), parse(text)).feeds()
    assert sorted(map(bytes, feed["image"])) == sorted(map(bytes, np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))))
    (scaled,) = read_samples(tmp_path, BYTES(), parse("unit")).feeds()
    assert scaled["image"].max() == 1


@pytest.mark.parametrize(
    ("text", "same"),
    [("scale=1/255", "unit"), ("mean=127.5/255,std=1/2", "mean=0.5,std=0.5"), ("scale=2/4", "scale=0.5")],
)
def test_fractions_are_numbers(text, same):
    dtype = np.dtype(np.float32)
    np.testing.assert_array_equal(parse(text).values(PIXELS, "nchw", dtype), parse(same).values(PIXELS, "nchw", dtype))


@pytest.mark.parametrize("text", ["scale=1/0", "scale=1/", "scale=/255", "std=0/2", "mean=1/2/3"])
def test_what_is_no_fraction_is_wrong_usage(text):
    with pytest.raises(UsageError, match="makes no sense"):
        parse(text)


@pytest.mark.parametrize(("name", "low", "high"), [("unit", 0, 1), ("tf", -1, 1), ("raw", 0, 255)])
def test_presets_have_their_ranges(name, low, high):
    ends = np.asarray([0, 255], np.uint8).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(PRESETS[name].values(ends, "nhwc", np.dtype(np.float32)).ravel(), [low, high])


METADATA = {
    "NominalRange_0_255": (0, 255),
    "NominalRange_16_235": (16, 235),
    "Normalized_0_1": (0, 1),
    "Normalized_1_1": (-1, 1),
}


@pytest.mark.parametrize("value", METADATA)
@pytest.mark.parametrize("colours", ["Rgb8", "Bgr8"])
def test_the_metadata_of_a_model_say_what_its_images_are(tmp_path, value, colours):
    proto = type(NCHW)()
    proto.CopyFrom(NCHW)
    for key, entry in (("Image.NominalPixelRange", value), ("Image.BitmapPixelFormat", colours)):
        proto.metadata_props.add(key=key, value=entry)
    red = np.zeros((8, 6, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "red.png")
    (feed,) = read_samples(tmp_path, proto).feeds()
    low, high = METADATA[value]
    expected = [high, low, low] if colours == "Rgb8" else [low, low, high]
    np.testing.assert_allclose(feed["image"][0, :, 0, 0], expected, atol=1e-4)


FLOATS = np.dtype(np.float32)


def described(how, **metadata):
    """What is done to the images of a model with such metadata."""
    proto = type(NCHW)()
    proto.CopyFrom(NCHW)
    for key, value in metadata.items():
        proto.metadata_props.add(key=f"Image.{key}", value=value)
    return ImageInputs.of(proto, parse(how) if how else None)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raw", Preprocess(scale=1.0, order="bgr")),
        ("raw,order=rgb", Preprocess(scale=1.0, order="rgb")),
        ("scale=1/2", Preprocess(scale=0.5, order="bgr")),
        ("labels=name", Preprocess(scale=1 / 255, mean=(0.5,), std=(0.5,), order="bgr", labels="name")),
        ("first=1,order=rgb", Preprocess(scale=1 / 255, mean=(0.5,), std=(0.5,), order="rgb", first=1)),
    ],
)
def test_what_the_user_says_comes_before_the_metadata(how, expected):
    images = described(how, NominalPixelRange="Normalized_1_1", BitmapPixelFormat="Bgr8")
    assert images.preprocessing(FLOATS) == expected


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_metadata_are_not_case_sensitive(case):
    proto = type(NCHW)()
    proto.metadata_props.add(key=case("Image.NominalPixelRange"), value=case("Normalized_0_1"))
    assert ImageInputs.of(proto, None).preprocessing(FLOATS) == Preprocess(scale=1 / 255)


@pytest.mark.parametrize(
    "metadata", [{}, {"BitmapPixelFormat": "Bgr8"}, {"NominalPixelRange": "Unheard_of"}, {"ColorSpaceGamma": "SRGB"}]
)
def test_metadata_without_a_range_leave_floats_unclear_and_bytes_as_they_are(metadata):
    assert described("", **metadata).preprocessing(FLOATS) is None
    order = "bgr" if "BitmapPixelFormat" in metadata else ""
    assert described("", **metadata).preprocessing(np.dtype(np.uint8)) == Preprocess(scale=1.0, order=order)


def test_arrays_of_bytes_for_an_input_of_bytes_are_its_values_unless_the_user_says_more():
    proto = BYTES()
    proto.metadata_props.add(key="Image.BitmapPixelFormat", value="Bgr8")
    x = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))
    (as_given,) = read_samples({"image": x}, proto).feeds()
    np.testing.assert_array_equal(as_given["image"], x)
    (turned,) = read_samples({"image": x}, proto, parse("raw")).feeds()
    np.testing.assert_array_equal(turned["image"], x[:, ::-1])


def test_transparency_stays_last_where_blue_comes_first():
    pixels = np.asarray([1, 2, 3, 4], np.uint8).reshape(1, 1, 1, 4)
    assert parse("raw,order=bgr").values(pixels, "nhwc", FLOATS).ravel().tolist() == [3, 2, 1, 4]
    grey = pixels[..., :1]
    assert parse("raw,order=bgr").values(grey, "nhwc", FLOATS).ravel().tolist() == [1]


@pytest.mark.parametrize("how", ["", "labels=name", "first=1", "order=bgr"])
def test_pixels_do_not_fit_into_signed_bytes(how):
    proto = net("int8[N,3,8,6] image", "float[1] w", "f = Cast<to=1>(image) y = Mul(f, w)", "float[N,3,8,6] y")()
    x = PIXELS.transpose(0, 3, 1, 2)
    with pytest.raises(RefusedError, match="give --preprocess"):
        read_samples({"image": x}, proto, parse(how) if how else None)
    (feed,) = read_samples({"image": x}, proto, parse("scale=1,mean=128")).feeds()
    assert (feed["image"].min(), feed["image"].max()) < (-100, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = PIXELS[0]
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "image.png", exif=exif)
    (feed,) = read_samples(tmp_path, NCHW, parse("raw")).feeds()
    np.testing.assert_array_equal(feed["image"][0], upright.transpose(2, 0, 1))
