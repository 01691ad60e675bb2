"""Running the command line in a test: in this process for speed, or as a user does."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from click.testing import CliRunner, Result
from nets.build import image

from spa_onnx.cli import main

if TYPE_CHECKING:
    import onnx

REPOSITORY = Path(__file__).parents[1]
MODELS = REPOSITORY / "models"
SHARED = Path(os.environ.get("SHARED_MODELS", REPOSITORY.parent / "shared" / "models"))
APART = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
"""What makes click before 8.2 keep stdout and stderr apart, as later ones always do."""
SHORT = ("--ratio", "0.4", "--criterion", "l1", "--no-validate")


def spa(*args: object) -> Result:
    """`spa-onnx` in this process. It prints no progress, however slow the machine is."""
    with patch("spa_onnx.report.progress.PAUSE", 10**6):
        return CliRunner(**APART).invoke(main, [str(arg) for arg in args], prog_name="spa-onnx")


def spa_process(*args: object, options: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    """`spa-onnx` in a process of its own, which reads no other environment than ours and `env`."""
    line = [sys.executable, *options, "-m", "spa_onnx", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | env, timeout=120)


def listing(folder: Path) -> dict[str, tuple[str, int]]:
    """What lies in a folder, hidden files too: name -> content and time of change."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def copy_model(folder: Path, name: str = "digits_resnet") -> Path:
    """One of the repository's models, where a test may write beside it."""
    return Path(shutil.copy(MODELS / f"{name}.onnx", folder / f"{name}.onnx"))


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a model that a test has made."""
    path.write_bytes(proto.SerializeToString())
    return path


def tiny() -> onnx.ModelProto:
    """Two convolutions with eight channels between them."""
    return image("z = Relu(a)", wide=8, into=8)()
