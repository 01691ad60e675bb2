"""Where samples come from: every kind of source gives the same feeds, and what does not fit is refused in one line."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from command import MODELS, spa
from nets.build import net
from onnx import numpy_helper
from pictures import IMAGE, NCHW, TWO

import spa_onnx
from spa_onnx.data.samples import BATCH, read_samples
from spa_onnx.data.sources import SOURCES, read_parts
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.validation.compare import compare

STATE = net(
    "float[N,4] x, float[2,N,3] state", "float[4,3] w", "m = MatMul(x, w) y = Add(m, state)", "float[2,N,3] y"
)()


def test_one_array_of_several_can_be_named(tmp_path):
    ids = net("int64[N,L] tokens", "float[1] w", "f = Cast<to=1>(tokens) y = Mul(f, w)", "float[N,L] y")()
    path = tmp_path / "stories.npz"
    np.savez(path, calib=np.ones((3, 7), np.int64), eval=np.zeros((2, 7), np.int64))
    assert len(read_samples(f"{path}:calib", ids)) == 3
    assert len(read_samples(f"{path}:eval", ids)) == 2
    with pytest.raises(RefusedError, match=r"it has calib, eval; name one: .*stories\.npz:calib"):
        read_samples(path, ids)
    with pytest.raises(RefusedError, match="has no array test; it has calib, eval"):
        read_samples(f"{path}:test", ids)


def test_dimensions_that_inputs_share_must_agree(tmp_path):
    np.savez(tmp_path / "data.npz", ids=np.ones((3, 7), np.int64), mask=np.ones((3, 9), np.float32))
    with pytest.raises(RefusedError, match=r"dimension L is 9 in mask \(shape \[3, 9\]\) and 7 in ids"):
        read_samples(tmp_path / "data.npz", TWO)


def test_inputs_without_a_common_axis_for_samples_are_one_run():
    feed = {"x": np.ones((6, 4), np.float32), "state": np.zeros((2, 6, 3), np.float32)}
    samples = read_samples([feed, feed], STATE)
    assert len(samples) == len(samples.feeds()) == 2
    assert {name: array.shape for name, array in samples.feeds()[1].items()} == {"x": (6, 4), "state": (2, 6, 3)}
    assert len(samples.head(1, BATCH).feeds()) == 1
    with pytest.raises(RefusedError, match=r"dimension N is 5 in state"):
        read_samples({"x": feed["x"], "state": np.zeros((2, 5, 3), np.float32)}, STATE)


def write_test_data(folder, feeds, *, named):
    for number, feed in enumerate(feeds):
        place = folder / f"test_data_set_{number}"
        place.mkdir(parents=True)
        for slot, (name, array) in enumerate(feed.items()):
            (place / f"input_{slot}.pb").write_bytes(
                numpy_helper.from_array(array, name if named else "").SerializeToString()
            )
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_test_data_goes_by_names_or_by_numbers(tmp_path, named):
    feeds = [{"ids": np.full((2, 5), n), "mask": np.full((2, 5), n, np.float32)} for n in range(3)]
    write_test_data(tmp_path, feeds, named=named)
    samples = read_samples(tmp_path, TWO)
    assert len(samples) == 6
    assert (samples.feeds()[0]["ids"][:, 0] == [0, 0, 1, 1, 2, 2]).all()
    assert len(read_samples(tmp_path / "test_data_set_1", TWO)) == 2


def test_sizes_may_differ_from_set_to_set(tmp_path):
    feeds = [{"ids": np.ones((2, length), np.int64), "mask": np.ones((2, length), np.float32)} for length in (5, 5, 7)]
    samples = read_samples(write_test_data(tmp_path, feeds, named=True), TWO)
    assert [feed["ids"].shape for feed in samples.feeds()] == [(4, 5), (2, 7)]
    assert [feed["ids"].shape for feed in samples.head(3, 2).feeds()] == [(2, 5), (1, 5)]
    assert [feed["ids"].shape for feed in samples.head(5, 8).feeds()] == [(4, 5), (1, 7)]


def test_test_data_that_is_damaged_or_incomplete_is_refused(tmp_path):
    folder = write_test_data(tmp_path, [{"ids": np.ones((2, 5), np.int64)}], named=False)
    with pytest.raises(RefusedError, match=r"no array for input mask .*it has input_0\.pb"):
        read_samples(folder, TWO)
    (folder / "test_data_set_0" / "input_1.pb").write_bytes(b"\xff\xff")
    with pytest.raises(RefusedError, match=r"input_1\.pb is not an ONNX tensor"):
        read_samples(folder, TWO)


class Reader:
    """As onnxruntime.quantization.CalibrationDataReader."""

    def __init__(self, feeds):
        self._feeds = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


@pytest.mark.parametrize(
    "wrap", [Reader, list, iter, lambda feeds: {"image": np.concatenate([f["image"] for f in feeds])}]
)
def test_objects_give_the_same_feeds(wrap):
    samples = read_samples(wrap([{"image": IMAGE}, {"image": 2 * IMAGE}]), NCHW)
    assert len(samples) == 4
    np.testing.assert_array_equal(samples.feeds()[0]["image"], np.concatenate([IMAGE, 2 * IMAGE]))


def test_a_factory_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_samples.py").write_text(
        "import numpy as np\n"
        "def make():\n    return iter([{'image': np.ones((2, 3, 8, 6), np.float32)}])\n"
        "def broken():\n    raise ValueError('no\\nluck')\n"
        "def number():\n    return 3\n"
        "def strings():\n    return ['a']\n"
        "def nothing():\n    return []\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert len(read_samples("my_samples:make", NCHW)) == 2
    for name, message in (
        ("broken", "ValueError: no"),
        ("absent", "AttributeError"),
        ("number", "is int, expected an object with get_next"),
        ("strings", "yields str, expected feeds"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            read_samples(f"my_samples:{name}", NCHW)
        assert "\n" not in str(caught.value)
    with pytest.raises(RefusedError, match="yields no feeds"):
        read_samples("my_samples:nothing", NCHW)
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        read_samples("no_such_module:make", NCHW)
    assert sys.path == before
    sys.modules.pop("my_samples")


def test_a_reader_that_never_ends_is_read_in_part(monkeypatch):
    monkeypatch.setattr("spa_onnx.data.sources.MOST", 7)

    def forever():
        while True:
            yield {"image": IMAGE[:1]}

    assert len(read_samples(forever(), NCHW)) == 7


def test_labels_come_with_feeds():
    samples = read_samples([{"image": IMAGE, "y": np.array([3, 4])}, {"image": IMAGE, "y": np.array([5, 6])}], NCHW)
    assert samples.labels.tolist() == [3, 4, 5, 6]


def test_every_kind_has_its_row(tmp_path):
    assert list(SOURCES) == ["arrays", "test data", "images", "reader"]
    np.save(tmp_path / "a.npy", IMAGE)
    assert [list(part) for part in read_parts(tmp_path / "a.npy")[1]] == [["x"]]


def digits(folder, count=30):
    """Some of the digits as pictures, with their class in the name; the model takes their values over 16."""
    data = np.load(MODELS / "digits_resnet.npz")
    return data["x"][:count], data["y"][:count], folder


def test_prune_and_compare_and_the_api_take_all_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y, _ = digits(tmp_path)
    model = MODELS / "digits_resnet.onnx"
    name = onnx.load(model).graph.input[0].name
    np.savez("data.npz", x=x, y=y)
    (tmp_path / "feeds_of_digits.py").write_text(
        f"import numpy as np\ndef make():\n    d = np.load('data.npz')\n"
        f"    return [{{{name!r}: d['x'], 'y': d['y']}}]\n"
    )
    write_test_data(tmp_path / "zoo", [{name: x}], named=False)
    records = []
    for source in ("data.npz", "feeds_of_digits:make", "zoo"):
        result = spa(
            "prune",
            model,
            "-o",
            "out.onnx",
            "--force",
            "--ratio",
            "0.3",
            "--samples",
            "16",
            "--data",
            source,
            "--plan",
            "plan.json",
        )
        assert result.exit_code == 0, result.output
        records.append((tmp_path / "plan.json").read_bytes())
        assert spa("compare", model, "out.onnx", "--data", source).exit_code == 0
        assert spa("apply", model, "plan.json", "-o", "again.onnx", "--force", "--data", source).exit_code == 0
        assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert len(set(records)) == 1
    by_api = spa_onnx.prune(model, 0.3, samples=16, data={"x": x, "y": y})
    assert by_api.model.SerializeToString() == (tmp_path / "out.onnx").read_bytes()
    assert by_api.report.drift.accuracy is not None
    assert compare(model, tmp_path / "out.onnx", data={"x": x}).drift.samples == len(x)
    sys.modules.pop("feeds_of_digits")
