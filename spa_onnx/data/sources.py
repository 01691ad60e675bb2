"""Where samples come from. Each source is a row of a table, and yields arrays that are not yet checked against a model."""

from __future__ import annotations

import io
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.model.files import check_input, first_line
from spa_onnx.model.folding import Array

DAMAGES = (
    *(ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError, OSError, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, struct.error, zlib.error, DecodeError),
)
"""What numpy, zipfile, protobuf and Pillow raise on files that are damaged, or not theirs."""

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
"""Of image files."""

ONLY = "x"
"""The array of the only input may go by this name."""

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""module:factory."""


@dataclass(frozen=True, slots=True)
class Images:
    """Image files, decoded when they are needed.

    paths: names in an order that has nothing to do with their content, so that the first of them are a fair choice. opened: the bytes
    of one.
    """

    where: str
    paths: tuple[str, ...]
    opened: Callable[[str], bytes]

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, chosen: slice, size: tuple[int, int], channels: int) -> Array:
        """Some of them as uint8 (n, height, width, channels): cropped around the middle to the shape wanted, then resized."""
        return np.stack([self._decoded(path, size, channels) for path in self.paths[chosen]])

    def _decoded(self, path: str, size: tuple[int, int], channels: int) -> Array:
        image_module, operations = _pillow()
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        try:
            with image_module.open(io.BytesIO(self.opened(path))) as image:
                fitted = operations.fit(image.convert(mode), size[::-1], image_module.Resampling.BILINEAR)
                return np.asarray(fitted, np.uint8).reshape(*size, channels)
        except (*DAMAGES, SyntaxError, image_module.DecompressionBombError) as error:
            raise RefusedError(f"{self.where}: image {path} cannot be read: {first_line(error)}") from error


NamedArrays = Mapping[str, "Array | Images"]
"""Arrays by name with the samples along their first axis, or images under the name x; labels under y."""


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError("images need Pillow; install it with: pip install 'spa-onnx[images]'") from error
    return Image, ImageOps


# --- arrays --------------------------------------------------------------------------------------------------------------------


def _arrays(given: str) -> list[NamedArrays]:
    """The arrays of an .npz, or that of an .npy. FILE.npz:NAME is the only input under another name. Pickles are never loaded."""
    place, _, name = given.rpartition(":") if not Path(given).exists() and ":" in given else (given, "", "")
    path = Path(place)
    check_input(path)
    try:
        with path.open("rb") as file:
            content: Any = np.load(file, allow_pickle=False)
            arrays = (
                {ONLY: content} if isinstance(content, np.ndarray) else {key: content[key] for key in content.files}
            )
    except DAMAGES as error:
        raise RefusedError(f"{path} is not an .npz or .npy file of plain arrays: {first_line(error)}") from error
    if name and name not in arrays:
        raise RefusedError(f"{path} has no array {name}; it has {', '.join(sorted(arrays)) or 'none'}")
    return [
        {ONLY: arrays[name], **{key: arrays[key] for key in ("y",) if key in arrays and key != name}}
        if name
        else arrays
    ]


# --- images --------------------------------------------------------------------------------------------------------------------


def _is_image(path: str) -> bool:
    parts = path.split("/")
    return Path(path).suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in parts)


def _shuffled(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(filter(_is_image, names), key=lambda name: (zlib.crc32(name.encode()), name)))


def _images(given: str) -> list[NamedArrays]:
    """A zip or a folder of images, those in folders inside it too."""
    _pillow()
    path = Path(given)
    if path.is_dir():
        images = Images(
            given,
            _shuffled(p.relative_to(path).as_posix() for p in path.rglob("*")),
            lambda name: (path / name).read_bytes(),
        )
    else:
        check_input(path)
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except DAMAGES as error:
            raise RefusedError(f"{path} is not a zip of images: {first_line(error)}") from error
        images = Images(given, _shuffled(names), lambda name: _member(path, name))
    if not images.paths:
        raise RefusedError(f"{given} holds no images ({', '.join(sorted(SUFFIXES))})")
    return [{ONLY: images}]


def _member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


# --- test data of the model zoo ------------------------------------------------------------------------------------------------


def _test_sets(path: Path) -> list[Path]:
    """The folders with input_0.pb, input_1.pb, ..: the folder itself, or those in it."""
    sets = [path, *sorted(path.glob("test_data*"))] if path.is_dir() else []
    return [folder for folder in sets if any(folder.glob("input_*.pb"))]


def _test_data(given: str) -> list[NamedArrays]:
    """Tensors in test_data_set_*/input_*.pb: under their own names, and under their numbers, which count the inputs of the graph."""
    parts: list[NamedArrays] = []
    for folder in _test_sets(Path(given)):
        part: dict[str, Array] = {}
        for file in sorted(folder.glob("input_*.pb")):
            number = file.stem.removeprefix("input_")
            tensor = onnx.TensorProto()
            try:
                tensor.ParseFromString(file.read_bytes())
                array = numpy_helper.to_array(tensor)
            except (*DAMAGES, TypeError) as error:
                raise RefusedError(f"{file} is not an ONNX tensor: {first_line(error)}") from error
            part[f"#{int(number)}" if number.isdigit() else number] = array
            if tensor.name:
                part[tensor.name] = array
        parts.append(part)
    return parts


# --- readers -------------------------------------------------------------------------------------------------------------------


def _factory(given: str) -> list[NamedArrays]:
    """What module:factory() returns: an object with get_next(), as onnxruntime's CalibrationDataReader, or an iterable of feeds."""
    module, _, name = given.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return from_object(getattr(import_module(module), name)(), given)
    except (RefusedError, UsageError):
        raise
    except Exception as error:
        raise UsageError(f"--data {given} fails: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.remove(folder)


MOST = 4096
"""Runs that are read from a reader at most: one may go on for ever."""


def from_object(given: Any, where: str = "data") -> list[NamedArrays]:
    """Feeds from a mapping of arrays, an object with get_next(), or an iterable of feeds. Raises UsageError for anything else."""
    if isinstance(given, Mapping):
        return [{str(name): np.asarray(array) for name, array in given.items()}]
    feeds = iter(given.get_next, None) if hasattr(given, "get_next") else given
    if not isinstance(feeds, Iterable):
        raise UsageError(
            f"{where} is {type(given).__name__}, expected an object with get_next() or an iterable of feeds"
        )
    parts: list[NamedArrays] = []
    for feed, _ in zip(feeds, range(MOST), strict=False):
        if not isinstance(feed, Mapping):
            raise UsageError(f"{where} yields {type(feed).__name__}, expected feeds: dicts from input names to arrays")
        parts.append({str(name): np.asarray(array) for name, array in feed.items()})
    if not parts:
        raise RefusedError(f"{where} yields no feeds; a reader that was read before needs rewind()")
    return parts


# --- the table -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of source. fits: whether a path or name is of this kind. read: what it holds."""

    fits: Callable[[str], bool]
    read: Callable[[str], list[NamedArrays]]


def _file(given: str) -> Path:
    """The file, without the name of an array in it."""
    return Path(given) if Path(given).exists() else Path(given.rpartition(":")[0] or given)


SOURCES: Mapping[str, SourceKind] = {
    "arrays": SourceKind(lambda given: _file(given).suffix in (".npz", ".npy"), _arrays),
    "test data": SourceKind(lambda given: bool(_test_sets(Path(given))), _test_data),
    "images": SourceKind(lambda given: Path(given).is_dir() or Path(given).suffix == ".zip", _images),
    "reader": SourceKind(lambda given: not Path(given).exists() and FACTORY.fullmatch(given) is not None, _factory),
}
"""The kinds of --data; the first that fits reads it, and a file that none claims is taken for arrays."""


def read_parts(given: object) -> tuple[str, list[NamedArrays]]:
    """(what to call it in messages, the parts). Raises UsageError or RefusedError with one line that says what is wrong."""
    if not isinstance(given, str | Path):
        return "data", from_object(given)
    text = str(given)
    source = next((source for source in SOURCES.values() if source.fits(text)), SOURCES["arrays"])
    return text, source.read(text)
