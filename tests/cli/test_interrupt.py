"""An interrupt at any moment leaves whole files or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import SHORT, copy_model, listing, save, spa, tiny

from spa_onnx import job, pipeline, steps
from spa_onnx.model import files, source
from spa_onnx.selection import propose as choice

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}

CHILD = """
import sys
import spa_onnx.cli as cli
find = cli.Main.get_command
def ready(*args):
    print("ready", flush=True)
    return find(*args)
cli.Main.get_command = ready
cli.main(sys.argv[1:], prog_name="spa-onnx")
"""
"""`spa-onnx` that says when it is past the start of Python."""


def start(*args: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", CHILD, *map(str, args)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def outputs(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "new.onnx").read_bytes(), (folder / "plan.json").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[bytes, bytes], float]:
    """What a run that nobody interrupts writes, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    args = ("prune", copy_model(folder), folder / "new.onnx", "--plan", folder / "plan.json", "--ratio", "0.4")
    process = start(*args)
    begin = time.monotonic()
    process.communicate()
    return outputs(folder), time.monotonic() - begin


@pytest.mark.parametrize("moment", range(12))
def test_a_signal_at_any_moment_leaves_old_or_new_files_and_nothing_else(tmp_path, whole, moment):
    written, seconds = whole
    number = (signal.SIGINT, signal.SIGTERM)[moment % 2]
    model = copy_model(tmp_path)
    before = listing(tmp_path)
    for name in ("new.onnx", "plan.json"):
        (tmp_path / name).write_bytes(b"old")
    process = start(
        "prune", model, tmp_path / "new.onnx", "--plan", tmp_path / "plan.json", "--ratio", "0.4", "--force"
    )
    time.sleep(seconds * (moment + 0.5) / 11)
    os.kill(process.pid, number)
    _, stderr = process.communicate()
    finished = outputs(tmp_path) != (b"old", b"old")
    assert outputs(tmp_path) == (written if finished else (b"old", b"old"))
    assert process.returncode in ({0, STATUS[number], -number} if finished else {STATUS[number]}), stderr
    assert "Traceback" not in stderr
    assert stderr.count("\n") <= 1
    after = listing(tmp_path)
    assert set(after) == {model.name, "new.onnx", "plan.json"}
    assert after[model.name] == before[model.name]


STEPS = [(source, "read_model"), (steps, "analyse"), (pipeline, "choose")]
STEPS += [(job, step) for step in ("rewrite", "validate", "quality")]
STEPS += [(choice, step) for step in ("score_groups", "select")]


@pytest.mark.parametrize(("module", "step"), STEPS)
@pytest.mark.parametrize("number", STATUS, ids=str)
def test_an_interrupt_in_any_step_writes_nothing(tmp_path, monkeypatch, module, step, number):
    monkeypatch.setattr(module, step, lambda *_, **__: signal.raise_signal(number))
    model = save(tiny(), tmp_path / "tiny.onnx")
    before = listing(tmp_path)
    result = spa("prune", model, "--ratio", "0.4")
    assert (result.exit_code, result.stdout) == (STATUS[number], "")
    assert result.stderr.count("\n") == 1
    assert listing(tmp_path) == before


def test_an_interrupt_that_an_extension_turns_into_another_error_is_an_interrupt(tmp_path, monkeypatch):
    def half_imported(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(job, "validate", half_imported)
    result = spa("prune", save(tiny(), tmp_path / "tiny.onnx"), "--ratio", "0.4")
    assert (result.exit_code, result.stderr) == (130, "Error: interrupted; no file was left incomplete\n")


def interrupted(folder: Path, *args: str) -> int:
    """The exit status of a run that should replace two old files."""
    model = save(tiny(), folder / "tiny.onnx")
    for name in ("new.onnx", "plan.json"):
        (folder / name).write_bytes(b"old")
    result = spa("prune", model, folder / "new.onnx", "--plan", folder / "plan.json", "--force", *SHORT, *args)
    assert set(listing(folder)) == {"tiny.onnx", "new.onnx", "plan.json"}
    assert "Traceback" not in result.output
    return result.exit_code


@pytest.mark.parametrize("number", STATUS, ids=str)
def test_an_interrupt_while_files_are_written_keeps_the_old_ones(tmp_path, monkeypatch, number):
    calls = []
    monkeypatch.setattr(
        files.os, "fsync", lambda _: calls.append(_) or (len(calls) == 2 and signal.raise_signal(number))
    )
    assert interrupted(tmp_path) == STATUS[number]
    assert outputs(tmp_path) == (b"old", b"old")
    assert len(calls) == 2


@pytest.mark.parametrize("number", STATUS, ids=str)
def test_an_interrupt_between_two_replacements_waits_for_the_second(tmp_path, monkeypatch, number):
    replace = Path.replace

    def replace_and_interrupt(path: Path, target: Path) -> None:
        replace(path, target)
        signal.raise_signal(number)

    monkeypatch.setattr(Path, "replace", replace_and_interrupt)
    assert interrupted(tmp_path) == STATUS[number]
    assert b"old" not in outputs(tmp_path)


def test_a_second_interrupt_does_not_stop_the_cleaning_up(tmp_path, monkeypatch):
    unlink = Path.unlink

    def unlink_slowly(path: Path, **options: bool) -> None:
        signal.raise_signal(signal.SIGINT)
        unlink(path, **options)

    monkeypatch.setattr(files.os, "fsync", lambda _: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(Path, "unlink", unlink_slowly)
    assert interrupted(tmp_path) == STATUS[signal.SIGINT]
    assert outputs(tmp_path) == (b"old", b"old")


def test_a_full_disk_keeps_the_old_files(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert interrupted(tmp_path) == 1
    assert outputs(tmp_path) == (b"old", b"old")


def test_signal_handlers_are_as_before_after_a_run(tmp_path):
    before = [signal.getsignal(number) for number in STATUS]
    assert interrupted(tmp_path) == 0
    assert [signal.getsignal(number) for number in STATUS] == before
