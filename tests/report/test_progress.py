"""Progress: quick commands are silent where stderr is no terminal, long ones say what they do."""

from __future__ import annotations

import time

import pytest

from spa_onnx.report import progress as module
from spa_onnx.report.progress import progress


def test_a_long_command_prints_the_step_that_runs(monkeypatch, capsys):
    monkeypatch.setattr(module, "PAUSE", 0.05)
    with progress(("load", "collect")) as show:
        show("collect")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.endswith(" s: collect") for line in lines)


def test_a_quick_command_is_silent(capsys):
    with progress(("load",)) as show:
        show("load")
    assert capsys.readouterr().err == ""


def test_nothing_is_printed_after_a_command_has_failed(monkeypatch, capsys):
    monkeypatch.setattr(module, "PAUSE", 0.05)
    with pytest.raises(ValueError, match="damaged"), progress(("load",)):
        raise ValueError("damaged")
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_the_step_and_its_number(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with progress(("load", "collect", "score")) as show:
        show("collect")
        time.sleep(0.3)
    err = capsys.readouterr().err
    assert "collect" in err
    assert "step 2 of 3" in err
