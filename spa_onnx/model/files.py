"""Reading and writing files.

Every failure is reported in one line. Files are written completely or not at all.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.model.damage import damage, stored_tensors
from spa_onnx.model.locks import folder_lock, signals_deferred
from spa_onnx.model.subgraphs import graphs


def check_input(path: Path) -> None:
    """Check that an input file exists.

    Raises:
        UsageError: There is no such file.
    """
    try:
        path.stat()
    except OSError as error:
        raise UsageError(
            f"{path} does not exist" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
        ) from error
    if not path.is_file():
        raise UsageError(f"{path} is not a file")


def read_model(path: Path) -> tuple[onnx.ModelProto, str, int]:
    """Read an ONNX model with its external data.

    Returns:
        (model, SHA-256 of the file in hexadecimal, size in bytes including external data).

    Raises:
        UsageError: There is no such file.
        RefusedError: The file cannot be read, is not an ONNX model, or is damaged.
    """
    check_input(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}") from error
    if not data:
        raise RefusedError(f"{path} is empty; export the model again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise RefusedError(
            f"{path} is not an ONNX model, or only part of one ({len(data)} bytes); export or download it again"
        ) from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise RefusedError(f"{path} holds no graph; it is not an ONNX model, or an empty one")
    external_bytes = _load_external(path, proto)
    if not any(entry.version for entry in proto.opset_import):
        raise RefusedError(
            f"{path} names no operator set (IR version {proto.ir_version}, "
            f"producer {proto.producer_name or 'unknown'}), "
            "so onnxruntime cannot run it; export it again with a current exporter"
        )
    problem = damage(proto)
    if problem:
        raise RefusedError(f"{path} is damaged: {problem}; export or download it again")
    return proto, sha256(data), len(data) + external_bytes


def check_model(proto: onnx.ModelProto) -> None:
    """Check a model that was passed as an object.

    Raises:
        RefusedError: The model is damaged, or its weights have no values because they are stored in another file, as
            after `onnx.save` with external data.
    """
    outside = [tensor.name for tensor in _external_tensors(proto)]
    if outside:
        raise RefusedError(
            f"the model in memory holds no values for {outside[0]!r} and {len(outside) - 1} other tensors: "
            "they are in another file (onnx.save with external data takes them away); "
            "give the path of the model instead"
        )
    problem = damage(proto)
    if problem:
        raise RefusedError(f"the model is damaged: {problem}; load or export it again")


def _external_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield the tensors whose values are stored in other files."""
    for graph in graphs(proto.graph):
        yield from (tensor for tensor in stored_tensors(graph) if uses_external_data(tensor))


def _load_external(path: Path, proto: onnx.ModelProto) -> int:
    """Load the external data of a model and return its size in bytes.

    onnx refuses symbolic links, but the caches of model hubs consist of them. This function follows them.
    """
    total = 0
    for tensor in _external_tensors(proto):
        external = ExternalDataInfo(tensor)
        location = external.location
        if not location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise RefusedError(
                f"{path}: the data of {tensor.name} is outside the model's folder ({location!r}); copy it there"
            )
        folders = (path.parent, path.resolve().parent)
        data_file = next((f / location for f in folders if (f / location).is_file()), path.parent / location)
        try:
            with data_file.open("rb") as file:
                file.seek(external.offset or 0)
                tensor.raw_data = file.read(-1 if external.length is None else external.length)
        except (OSError, ValueError) as error:
            raise RefusedError(f"{path}: its data in {data_file} cannot be read: {first_line(error)}") from error
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
        total += len(tensor.raw_data)
    return total


def sha256(data: bytes) -> str:
    """Return the hexadecimal digest by which a plan identifies its model."""
    return hashlib.sha256(data).hexdigest()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_targets(inputs: Sequence[Path | None], targets: Sequence[Path | None], *, force: bool) -> None:
    """Check the input and output files of a command before it runs.

    Args:
        inputs: The input files; None is ignored.
        targets: The output files; None is ignored.
        force: Whether existing files may be replaced.

    Raises:
        UsageError: An input is missing; an output is an input, exists already or cannot be written; or two outputs have
            the same name.
    """
    read = [path for path in inputs if path is not None]
    for path in read:
        check_input(path)
    for target in targets:
        if target is not None and str(target) == "-":
            raise UsageError("- is no file: a model has to be checked before it is written, so it is not streamed")
        if target is not None:
            _check_target(read, target, force=force)
    outputs = [target.resolve() for target in targets if target is not None]
    if len(set(outputs)) != len(outputs):
        raise UsageError(f"two outputs have the same name, {max(outputs, key=outputs.count)}; give each its own")


def _check_target(inputs: Sequence[Path], target: Path, *, force: bool) -> None:
    """Raise UsageError if an output file cannot be written."""
    if any(target.resolve() == path.resolve() or (target.exists() and target.samefile(path)) for path in inputs):
        raise UsageError(f"{target} is an input, and inputs are never changed; give another output")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; make it first")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is not a regular file; give another output")
    if target.exists() and not force:
        raise UsageError(f"{target} exists; use --force to replace it")
    if not os.access(folder, os.W_OK) or not _takes_files(folder):
        raise UsageError(f"the folder {folder} is read-only; give another output")


def _takes_files(folder: Path) -> bool:
    """Return whether a file can be created in a folder; root may write despite the permissions."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return folder.stat().st_mode & 0o222 != 0
    except OSError:
        return False


def serialise(proto: onnx.ModelProto, target: Path) -> bytes:
    """Return the content of a model file.

    Args:
        proto: The model.
        target: The file that the error message names.

    Raises:
        RefusedError: The model is larger than the 2 GiB that an ONNX file can hold.
    """
    try:
        return bytes(proto.SerializeToString())
    except (ValueError, EncodeError) as error:
        raise RefusedError(
            f"{target} would be larger than the 2 GiB that one ONNX file can hold; use a larger --ratio"
        ) from error


def write_files(contents: Mapping[Path, bytes], *, force: bool = True) -> None:
    """Write all files or none.

    The contents go to temporary files in the same folders, which are then moved to their targets. If a move fails, the
    earlier moves are undone. A lock on each folder prevents the files of concurrent runs from mixing.

    Args:
        contents: Target file -> its content.
        force: Whether existing files may be replaced.

    Raises:
        UsageError: A target was written by another process meanwhile, and `force` is not set.
        RefusedError: The files cannot be written, for example because the disk is full.
    """
    temporary = {target: target.absolute().parent / f".spa-onnx-{secrets.token_hex(8)}" for target in contents}
    try:
        for target, data in contents.items():
            _write(temporary[target], data)
        with ExitStack() as locks:
            for folder in sorted({path.parent for path in temporary.values()}):
                locks.enter_context(folder_lock(folder))
            locks.enter_context(signals_deferred())
            conflicts = [target for target in contents if target.exists() and not force]
            if conflicts:
                raise UsageError(
                    f"{conflicts[0]} was written by another process meanwhile; nothing was written; "
                    "use --force to replace it"
                )
            _move(temporary)
    except OSError as error:
        raise RefusedError(
            f"cannot write {', '.join(map(str, contents))}: {error.strerror}; nothing was written"
        ) from error
    finally:
        with signals_deferred():
            for path in temporary.values():
                path.unlink(missing_ok=True)


def _move(temporary: Mapping[Path, Path]) -> None:
    """Move files to their targets (target -> temporary file); if one move fails, restore all targets."""
    backups: dict[Path, Path | None] = {}
    try:
        for target, path in temporary.items():
            backups[target] = _back_up(target, path.with_suffix(".old"))
            path.replace(target)
    except OSError:
        for target, old in backups.items():
            if old is not None:
                old.replace(target)
            elif not temporary[target].exists():
                target.unlink()
        raise
    finally:
        for old in backups.values():
            if old is not None:
                old.unlink(missing_ok=True)


def _back_up(path: Path, backup: Path) -> Path | None:
    """Hard-link a file, or copy it if the file system has no hard links; return None if there is no such file."""
    if not os.path.lexists(path):
        return None
    try:
        os.link(path, backup, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, backup, follow_symlinks=False)
    return backup


def _write(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
