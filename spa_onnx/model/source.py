"""A model to prune, as it was read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from spa_onnx.model.files import check_model, read_model, sha256


@dataclass(frozen=True, slots=True)
class Source:
    """A model that was read.

    Args:
        proto: The model, all its external data loaded.
        sha256: The hexadecimal digest of its file, by which a plan recognises it.
        bytes: Its size, external data included.
    """

    proto: onnx.ModelProto
    sha256: str
    bytes: int


def open_source(model: str | Path | onnx.ModelProto) -> Source:
    """Read a model from a path, or take one from memory.

    Raises:
        UsageError: There is no such file.
        RefusedError: It is no ONNX model, or a damaged one.
    """
    if isinstance(model, onnx.ModelProto):
        check_model(model)
        data = model.SerializeToString()
        return Source(model, sha256(data), len(data))
    return Source(*read_model(Path(model)))
