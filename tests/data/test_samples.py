"""Data given by the user: arrays that fit are read unchanged.

Others are refused with the name of the array and what was expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets.build import net
from random_graphs import CI

from spa_onnx.data.samples import BATCH, read_samples
from spa_onnx.errors import RefusedError, SpaError, UsageError

if TYPE_CHECKING:
    import onnx

FREE = net("float[N,3,4,4] image", "float[5,3,1,1] w", "y = Conv(image, w)")()
FIXED = net("float[4,3,4,4] image", "float[5,3,1,1] w", "y = Conv(image, w)")()
TWO = net("int64[N,7] ids, float[N,7] mask", "float[1] w", "f = Cast<to=1>(ids) y = Mul(f, mask)")()
IMAGES = np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32)


def read(folder, proto: onnx.ModelProto = FREE, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return read_samples(folder / "data.npz", proto)


@pytest.mark.parametrize("name", ["image", "x"])
def test_an_only_input_goes_by_its_name_or_by_x(tmp_path, name):
    samples = read(tmp_path, **{name: IMAGES}, y=np.arange(10))
    assert len(samples) == 10
    assert (samples.feeds()[0]["image"] == IMAGES).all()
    assert samples.labels.tolist() == list(range(10))


def test_a_plain_npy_is_the_only_input(tmp_path):
    np.save(tmp_path / "data.npy", IMAGES)
    assert (read_samples(tmp_path / "data.npy", FREE).feeds()[0]["image"] == IMAGES).all()


def test_inputs_of_several_names_are_all_read(tmp_path):
    samples = read(tmp_path, TWO, ids=np.ones((3, 7), np.int32), mask=np.ones((3, 7), np.float64))
    assert {name: array.dtype for name, array in samples.feeds()[0].items()} == {"ids": np.int64, "mask": np.float32}


def test_a_free_batch_is_filled_and_the_rest_comes_last(tmp_path):
    many = np.zeros((BATCH + 3, 3, 4, 4), np.float32)
    assert [len(feed["image"]) for feed in read(tmp_path, image=many).feeds()] == [BATCH, 3]


def test_a_fixed_batch_is_filled_and_the_rest_left_out(tmp_path):
    feeds = list(read(tmp_path, FIXED, image=IMAGES).feeds())
    assert [len(feed["image"]) for feed in feeds] == [4, 4]
    assert (feeds[1]["image"] == IMAGES[4:8]).all()


def test_data_that_is_not_there_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_samples(tmp_path / "none.npz", FREE)
    with pytest.raises(RefusedError, match="holds no images"):
        read_samples(tmp_path, FREE)


BAD = IMAGES.copy()
BAD[2, 1, 0, 0], BAD[3, 0, 0, 1] = np.nan, np.inf


@pytest.mark.parametrize(
    ("proto", "arrays", "message"),
    [
        (FREE, {"picture": IMAGES}, r"no array for input image \(float32 \[any, 3, 4, 4\]\); it has picture"),
        (FREE, {}, "no array for input image"),
        (TWO, {"x": IMAGES}, "no array for input ids"),
        (TWO, {"ids": np.ones((3, 7), np.int64)}, "no array for input mask"),
        (TWO, {"ids": np.ones((3, 7), np.int64), "mask": np.ones((4, 7), np.float32)}, "number of samples"),
        (FREE, {"image": IMAGES[0]}, r"shape \[3, 4, 4\], the model expects float32 \[any, 3, 4, 4\]"),
        (FREE, {"image": np.moveaxis(IMAGES, 1, 3)}, r"shape \[10, 4, 4, 3\]"),
        (FREE, {"image": IMAGES[:0]}, r"shape \[0, 3, 4, 4\]"),
        (FREE, {"image": (IMAGES * 50).astype(np.uint8)}, "is uint8, the model expects float32"),
        (FREE, {"image": IMAGES.astype(np.complex64)}, "is complex64"),
        (FREE, {"image": IMAGES.astype(str)}, "the model expects float32"),
        (
            TWO,
            {"ids": np.ones((3, 7), np.float32), "mask": np.ones((3, 7), np.float32)},
            "ids is float32, the model expects int64",
        ),
        (FREE, {"image": BAD}, "2 values that are not finite"),
        (FREE, {"image": IMAGES, "y": np.arange(9)}, "y has"),
        (FIXED, {"image": IMAGES[:3]}, "has 3 samples, but the model takes 4"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_with_what_was_expected(tmp_path, proto, arrays, message):
    with pytest.raises(RefusedError, match=message) as caught:
        read(tmp_path, proto, **arrays)
    assert "data.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("int8", np.asarray([0, 200], np.uint8), "holds uint8 from 0 to 200, and the model takes int8"),
        ("int32", np.asarray([-1, 2**40]), "holds int64 from -1 to 1099511627776"),
        ("int16", np.asarray([-(2**15) - 1, 0], np.int32), "from -32769 to 0"),
        ("float16", np.asarray([1.0, 1e6]), "too large for float16"),
        ("float", np.asarray([1.0, -1e300]), "too large for float32"),
    ],
)
def test_numbers_that_the_type_of_an_input_does_not_have_are_refused_and_not_wrapped(kind, values, message):
    proto = net(f"{kind}[N,2] a", "float[1] w", "f = Cast<to=1>(a) y = Mul(f, w)", "float[N,2] y")()
    with pytest.raises(RefusedError, match=message):
        read_samples({"a": values[None]}, proto)
    (feed,) = read_samples({"a": values[None] % 100}, proto).feeds()
    np.testing.assert_array_equal(feed["a"], values[None] % 100)


def test_pickled_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "data.npz", image=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(RefusedError, match="plain arrays"):
        read_samples(tmp_path / "data.npz", FREE)


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_what_is_no_npz_is_refused(tmp_path, data):
    (tmp_path / "data.npz").write_bytes(data)
    with pytest.raises(RefusedError, match="plain arrays"):
        read_samples(tmp_path / "data.npz", FREE)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("npz")
    np.savez(folder / "data.npz", image=IMAGES[:2], y=np.arange(2))
    np.savez_compressed(folder / "packed.npz", image=IMAGES[:2], y=np.arange(2))
    return folder, [(folder / name).read_bytes() for name in ("data.npz", "packed.npz")]


@given(st.integers(0, 1), st.integers(0, 2000), st.binary(max_size=6))
@settings(CI, max_examples=150)
def test_a_damaged_npz_is_refused_or_read_but_never_a_traceback(stored, which, place, put):
    folder, contents = stored
    data = contents[which]
    cut = place % len(data)
    (folder / "bad.npz").write_bytes(data[:cut] + put + (data[cut + len(put) :] if put else b""))
    try:
        message = str(read_samples(folder / "bad.npz", FREE).feeds()[0]["image"].shape[1:])
    except SpaError as error:
        message = str(error)
    assert message == "(3, 4, 4)" or (len(message.splitlines()) == 1 and "bad.npz" in message)
