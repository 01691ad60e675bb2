"""Reading and writing files: one clear error line each, and never half a file."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.model.model import graph_constants
from spa_onnx.model.subgraphs import graphs

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

BYTE = 8

PLAIN: Mapping[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT32: "int32_data",
    TensorProto.INT64: "int64_data",
}
"""Types stored one value per element where they are not stored raw, and in which field."""


def check_input(path: Path) -> None:
    """Raises UsageError where there is no such file."""
    try:
        path.stat()
    except OSError as error:
        raise UsageError(
            f"{path} does not exist" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
        ) from error
    if not path.is_file():
        raise UsageError(f"{path} is not a file")


def read_model(path: Path) -> tuple[onnx.ModelProto, str, int]:
    """(model, SHA-256 of the file, bytes with all external data). Raises UsageError or RefusedError where it is no ONNX model."""
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
    external = _load_external(path, proto)
    if not any(entry.version for entry in proto.opset_import):
        raise RefusedError(
            f"{path} names no operator set (IR version {proto.ir_version}, producer {proto.producer_name or 'unknown'}), "
            "so onnxruntime cannot run it; export it again with a current exporter"
        )
    broken = _broken(proto)
    if broken:
        raise RefusedError(f"{path} is damaged: {broken}; export or download it again")
    return proto, sha256(data), len(data) + external


def check_model(proto: onnx.ModelProto) -> None:
    """Raises RefusedError where a model in memory lacks the values of its weights, as after onnx.save with external data, or is damaged."""
    outside = [t.name for graph in graphs(proto.graph) for t in _tensors(graph) if uses_external_data(t)]
    if outside:
        raise RefusedError(
            f"the model in memory holds no values for {outside[0]!r} and {len(outside) - 1} other tensors: they are in another file "
            "(onnx.save with external data takes them away); give the path of the model instead"
        )
    broken = _broken(proto)
    if broken:
        raise RefusedError(f"the model is damaged: {broken}; load or export it again")


def _load_external(path: Path, proto: onnx.ModelProto) -> int:
    """Load what the model keeps in other files, and say how many bytes that is.

    onnx itself refuses symbolic links, of which the caches of model hubs consist; so they are followed here.
    """
    total = 0
    for tensor in (tensor for graph in graphs(proto.graph) for tensor in _tensors(graph) if uses_external_data(tensor)):
        place = ExternalDataInfo(tensor)
        if not place.location or Path(place.location).is_absolute() or ".." in Path(place.location).parts:
            raise RefusedError(
                f"{path}: the data of {tensor.name} is outside the model's folder ({place.location!r}); copy it there"
            )
        folder = next((f for f in (path.parent, path.resolve().parent) if (f / place.location).is_file()), path.parent)
        try:
            with (folder / place.location).open("rb") as file:
                file.seek(place.offset or 0)
                tensor.raw_data = file.read(-1 if place.length is None else place.length)
        except (OSError, ValueError) as error:
            raise RefusedError(
                f"{path}: its data in {folder / place.location} cannot be read: {first_line(error)}"
            ) from error
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
        total += len(tensor.raw_data)
    return total


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)


def _broken(proto: onnx.ModelProto) -> str:
    """What is wrong with a model that could be parsed but not be worked with, or nothing."""
    for graph in graphs(proto.graph):
        names = [
            text for node in graph.node for text in (node.name, node.op_type, node.domain, *node.input, *node.output)
        ]
        if not all(isinstance(text, str) for text in (*names, *(tensor.name for tensor in graph.initializer))):
            return "a name is not UTF-8"
        if not all(node.output for node in graph.node):
            return "a node has no output"
        for tensor in graph_constants(graph).values():
            problem = _misfit(tensor)
            if problem:
                return f"{tensor.name or 'a constant'} {problem}"
    return ""


def _misfit(tensor: onnx.TensorProto) -> str:
    """Where the values of a tensor are not as many as its shape says."""
    try:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError):
        return f"has the unknown type {tensor.data_type}"
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        fewest = 1 if bits == BYTE else bits  # types below 8 bits are packed
        fits, stored = count * fewest <= BYTE * len(tensor.raw_data) <= count * bits, f"{len(tensor.raw_data)} bytes"
    elif tensor.data_type in PLAIN:
        values = getattr(tensor, PLAIN[tensor.data_type])
        fits, stored = len(values) == count, f"{len(values)} values"
    else:
        return ""
    return "" if fits else f"holds {stored}, which does not fit its shape {list(tensor.dims)}"


def sha256(data: bytes) -> str:
    """Hexadecimal digest by which a plan recognises its model."""
    return hashlib.sha256(data).hexdigest()


def first_line(error: Exception) -> str:
    """The first line of a message, or the kind of error where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_targets(inputs: Sequence[Path | None], targets: Sequence[Path | None], *, force: bool) -> None:
    """Raises UsageError where an input is missing, or an output would overwrite an input or another file, or cannot be written."""
    read = [path for path in inputs if path is not None]
    for path in read:
        check_input(path)
    for target in targets:
        if target is not None:
            _check_target(read, target, force=force)
    given = [target.resolve() for target in targets if target is not None]
    if len(set(given)) != len(given):
        raise UsageError(f"two outputs have the same name, {max(given, key=given.count)}; give each its own")


def _check_target(inputs: Sequence[Path], target: Path, *, force: bool) -> None:
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
    """Whether a file can really be made there: for root, permissions alone do not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return folder.stat().st_mode & 0o222 != 0
    except OSError:
        return False


def serialise(proto: onnx.ModelProto, target: Path) -> bytes:
    """The content of a model file. Raises RefusedError where one file cannot hold it."""
    try:
        return bytes(proto.SerializeToString())
    except (ValueError, EncodeError) as error:
        raise RefusedError(
            f"{target} would be larger than the 2 GiB that one ONNX file can hold; use a larger --ratio"
        ) from error


def write_files(contents: Mapping[Path, bytes], *, force: bool = True) -> None:
    """Write all files or none: each goes to a temporary file beside its place first, then all are moved, or none if one cannot be.

    Runs that end at the same time take turns, so that the files of one never mix with those of another. Raises UsageError where another
    has written one of them meanwhile and `force` is not set, RefusedError where the disk does not take them.
    """
    temporary = {target: target.absolute().parent / f".spa-onnx-{secrets.token_hex(8)}" for target in contents}
    try:
        for target, data in contents.items():
            _write(temporary[target], data)
        with ExitStack() as held:
            for folder in sorted({made.parent for made in temporary.values()}):
                held.enter_context(_alone(folder))
            held.enter_context(_undisturbed())
            taken = [target for target in contents if target.exists() and not force]
            if taken:
                raise UsageError(
                    f"{taken[0]} was written by another process meanwhile; nothing was written; use --force to replace it"
                )
            _move(temporary)
    except OSError as error:
        raise RefusedError(
            f"cannot write {', '.join(map(str, contents))}: {error.strerror}; nothing was written"
        ) from error
    finally:
        with _undisturbed():
            for made in temporary.values():
                made.unlink(missing_ok=True)


def _move(temporary: Mapping[Path, Path]) -> None:
    """Move every file to its place (target -> where it is now). Where one cannot be moved, all that stood there before comes back."""
    before: dict[Path, Path | None] = {}
    try:
        for target, made in temporary.items():
            before[target] = _second_name(target, made.with_suffix(".old"))
            made.replace(target)
    except OSError:
        for target, old in before.items():
            if old is not None:
                old.replace(target)
            elif not temporary[target].exists():
                target.unlink()
        raise
    finally:
        for old in before.values():
            if old is not None:
                old.unlink(missing_ok=True)


def _second_name(path: Path, name: Path) -> Path | None:
    """The content of a file under another name too, None where there is no such file; a copy where the disk knows no hard links."""
    if not os.path.lexists(path):
        return None
    try:
        os.link(path, name, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, name, follow_symlinks=False)
    return name


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold back other runs that are about to move files into this folder. Where folders cannot be locked, nobody waits."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block is done; other threads than the main one never get them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda caught, _: held.append(caught))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    if held:
        signal.raise_signal(held[0])
