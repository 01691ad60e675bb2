"""Files: one clear refusal for whatever is no model, and never half a file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets.build import net
from random_graphs import CI

from spa_onnx.errors import RefusedError, SpaError, UsageError
from spa_onnx.model import files
from spa_onnx.model.files import check_targets, read_model, sha256, write_files
from spa_onnx.model.model import Model

if TYPE_CHECKING:
    from pathlib import Path

MODEL = net("float[N,3,4,4] x", "float[8,3,1,1] w, float[4,8,1,1] v", "a = Conv(x, w) b = Relu(a) y = Conv(b, v)")()
BYTES = MODEL.SerializeToString()


def written(folder: Path, data: bytes, name: str = "m.onnx") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_model_is_read_with_its_digest_and_size(tmp_path):
    proto, digest, size = read_model(written(tmp_path, BYTES))
    assert proto == MODEL
    assert digest == sha256(BYTES)
    assert size == len(BYTES)


def test_a_missing_file_and_a_folder_are_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match=r"none\.onnx does not exist"):
        read_model(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="is not a file"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 not a model at all", "not an ONNX model"),
        (b"<html>404 Not Found</html>", "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "not an ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
        (onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g")).SerializeToString(), "holds no graph"),
        (onnx.ModelProto(ir_version=8, graph=MODEL.graph).SerializeToString(), "names no operator set"),
    ],
)
def test_what_is_no_model_is_refused_with_the_reason_and_the_path(tmp_path, data, message):
    path = written(tmp_path, data)
    with pytest.raises(RefusedError, match=message) as caught:
        read_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_external_data_is_refused_by_name(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load_from_string(BYTES), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    again, _, _ = read_model(path)
    assert (Model.of(again).constant("w") == Model.of(MODEL).constant("w")).all()
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(RefusedError, match=r"weights\.bin cannot be read"):
        read_model(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@given(st.integers(0, len(BYTES) - 1))
@settings(CI, max_examples=150)
def test_a_truncated_model_is_refused_or_read_but_never_a_traceback(scratch, length):
    check_damaged(scratch, BYTES[:length])


@given(st.integers(0, len(BYTES) - 1), st.integers(0, 255), st.integers(0, 20))
@settings(CI, max_examples=150)
def test_a_damaged_model_is_refused_or_read_but_never_a_traceback(scratch, place, value, more):
    check_damaged(scratch, BYTES[:place] + bytes([value]) * (1 + more) + BYTES[place + 1 + more :])


def check_damaged(folder: Path, data: bytes) -> None:
    """Whatever the bytes are: a SpaError of one line, or a model that can be looked at."""
    path = written(folder, data)
    try:
        proto, digest, _ = read_model(path)
        Model.of(proto)
    except SpaError as error:
        message = str(error)
    else:
        message = "read" if digest == sha256(data) else ""
    assert len(message.splitlines()) == 1


# --- writing --------------------------------------------------------------------------------------------------------


def test_all_files_are_written_and_nothing_else(tmp_path):
    write_files({tmp_path / "a": b"one", tmp_path / "b": b"two"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"one", "b": b"two"}


def test_an_existing_file_is_replaced_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"a much longer old content")
    write_files({tmp_path / "a": b"new"})
    assert (tmp_path / "a").read_bytes() == b"new"


def test_new_files_have_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_files({tmp_path / "a": b"one"})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("which", [1, 2])
def test_an_exception_while_writing_leaves_no_file_and_no_temporary(tmp_path, monkeypatch, failure, which):
    """The disk is full, or the user presses Ctrl-C, while the first or the second file is being written."""
    (tmp_path / "old").write_bytes(b"old content")
    calls = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == which:
            raise failure

    monkeypatch.setattr(files.os, "fsync", failing)
    expected = SpaError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected):
        write_files({tmp_path / "old": b"new content", tmp_path / "fresh": b"fresh content"})
    assert len(calls) == which
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"old content"}


def test_a_folder_that_vanished_is_one_clear_error(tmp_path):
    with pytest.raises(SpaError, match="cannot write"):
        write_files({tmp_path / "gone" / "a": b"one"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("broken", ["model", "plan", "report"])
def test_a_move_that_fails_undoes_those_before_it(tmp_path, monkeypatch, broken, links):
    """A model without its plan, or with the plan of another run, is worse than none."""
    (tmp_path / "model").write_bytes(b"old model")
    (tmp_path / "report").write_bytes(b"old report")
    move = files.Path.replace

    def failing(self, target):
        if target == tmp_path / broken and self.name.startswith(".spa-onnx") and not self.name.endswith(".old"):
            raise OSError(5, "Input/output error")
        return move(self, target)

    def refused(*_, **__):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(files.Path, "replace", failing)
    if not links:
        monkeypatch.setattr(files.os, "link", refused)
    with pytest.raises(RefusedError, match="Input/output error; nothing was written"):
        write_files({tmp_path / name: b"new" for name in ("model", "plan", "report")})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "model": b"old model",
        "report": b"old report",
    }


def test_what_another_run_has_written_meanwhile_is_replaced_only_by_force(tmp_path):
    (tmp_path / "plan").write_bytes(b"another's")
    with pytest.raises(UsageError, match=r"plan was written by another process meanwhile.*--force"):
        write_files({tmp_path / "model": b"ours", tmp_path / "plan": b"ours"}, force=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"plan": b"another's"}


@pytest.mark.parametrize("force", [True, False])
def test_runs_that_end_at_the_same_time_never_mix_their_files(tmp_path, force):
    script = (
        "import sys, time; from pathlib import Path; from spa_onnx.model.files import write_files\n"
        "who, start = sys.argv[1].encode(), float(sys.argv[2])\n"
        "time.sleep(max(start - time.time(), 0))\n"
        "for _ in range(30):\n"
        "    try: write_files({Path('model'): who, Path('plan'): who, Path('report'): who}, "
        "force=sys.argv[3] == 'True')\n"
        "    except Exception as error: print(type(error).__name__)\n"
    )
    start = str(time.time() + 1.5)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(who), start, str(force)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        for who in range(3)
    ]
    printed = "".join(run.communicate(timeout=60)[0] for run in runs)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(left) == {"model", "plan", "report"}
    assert len(set(left.values())) == 1
    assert printed == ("" if force else "UsageError\n" * 89)


# --- targets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    return written(tmp_path, BYTES)


def test_a_free_name_in_a_folder_is_fine_and_left_alone(tmp_path, model):
    check_targets([model], [tmp_path / "out.onnx", None], force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_input_is_never_an_output_by_whatever_name(tmp_path, model):
    (tmp_path / "link.onnx").symlink_to(model)
    for target in (model, tmp_path / "." / "m.onnx", tmp_path / "link.onnx"):
        with pytest.raises(UsageError, match="never changed"):
            check_targets([model], [target], force=True)


def test_an_existing_file_is_replaced_only_by_force(tmp_path, model):
    (tmp_path / "out.onnx").write_bytes(b"precious")
    with pytest.raises(UsageError, match="--force"):
        check_targets([model], [tmp_path / "out.onnx"], force=False)
    check_targets([model], [tmp_path / "out.onnx"], force=True)
    assert (tmp_path / "out.onnx").read_bytes() == b"precious"


def test_folders_missing_folders_and_twins_are_refused(tmp_path, model):
    (tmp_path / "folder").mkdir()
    for targets, message in (
        ([tmp_path / "folder"], "is a folder"),
        ([tmp_path / "none" / "out.onnx"], "does not exist"),
        ([tmp_path / "a", tmp_path / "." / "a"], "same name"),
    ):
        with pytest.raises(UsageError, match=message):
            check_targets([model], targets, force=False)


def test_a_read_only_folder_is_refused_before_any_work(tmp_path, model):
    folder = tmp_path / "shut"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="read-only"):
            check_targets([model], [folder / "out.onnx"], force=False)
    finally:
        folder.chmod(0o700)
