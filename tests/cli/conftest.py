"""A small model in a folder of its own, for the tests of commands."""

from pathlib import Path

import pytest
from command import save, tiny


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return save(tiny(), tmp_path / "tiny.onnx")
