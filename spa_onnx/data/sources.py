"""Sources of samples. Each kind is an entry of SOURCES and returns arrays that are not yet checked against a model."""

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
from spa_onnx.model.facts import Indices
from spa_onnx.model.files import check_input, first_line
from spa_onnx.model.folding import Array

DAMAGES = (
    *(ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError, OSError, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, struct.error, zlib.error, DecodeError),
)
"""The errors of numpy, zipfile, protobuf and Pillow for files that are damaged or of another kind."""

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
"""The suffixes of image files."""

ONLY_INPUT = "x"
"""The name under which the array of a model's only input can be stored, and images always are."""

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""The form of module:factory."""


@dataclass(frozen=True, slots=True)
class Images:
    """Image files, decoded on demand.

    Args:
        where: The name of the data in messages.
        paths: The names, in an order that does not depend on their content, so that the first ones are a fair sample.
        read_bytes: Returns the bytes of a file.
    """

    where: str
    paths: tuple[str, ...]
    read_bytes: Callable[[str], bytes]

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, selection: slice | Indices, size: tuple[int, int], channels: int) -> Array:
        """Decode images, cropped around the middle to the ratio of `size` and then resized.

        Args:
            selection: A slice or the indices of the images in `paths`.
            size: (height, width).
            channels: The number of channels.

        Returns:
            uint8 (n, height, width, channels).

        Raises:
            RefusedError: An image cannot be read.
        """
        return np.stack([self._decoded(path, size, channels) for path in np.asarray(self.paths, object)[selection]])

    def _decoded(self, path: str, size: tuple[int, int], channels: int) -> Array:
        """Return the pixels of one image."""
        image_module, operations = _pillow()
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        try:
            with image_module.open(io.BytesIO(self.read_bytes(path))) as image:
                upright = operations.exif_transpose(image).convert(mode)
                fitted = operations.fit(upright, size[::-1], image_module.Resampling.BILINEAR)
                return np.asarray(fitted, np.uint8).reshape(*size, channels)
        except (*DAMAGES, SyntaxError, image_module.DecompressionBombError) as error:
            raise RefusedError(f"{self.where}: image {path} cannot be read: {first_line(error)}") from error


NamedArrays = Mapping[str, "Array | Images"]
"""Arrays by name with the samples along their first axis, or images under the name x; labels under y."""


def _pillow() -> tuple[Any, Any]:
    """Return the Image and ImageOps modules of Pillow."""
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise UsageError("images need Pillow; install it with: pip install 'spa-onnx[images]'") from error
    return Image, ImageOps


# --- arrays -----------------------------------------------------------------------------------------------------------


def _arrays(source: str) -> list[NamedArrays]:
    """Return the arrays of an .npz file, or that of an .npy file. Pickles are never loaded.

    With FILE.npz:NAME, the array NAME is the only input.
    """
    location, _, name = source.rpartition(":") if not Path(source).exists() and ":" in source else (source, "", "")
    path = Path(location)
    check_input(path)
    try:
        with path.open("rb") as file:
            content: Any = np.load(file, allow_pickle=False)
            arrays = (
                {ONLY_INPUT: content}
                if isinstance(content, np.ndarray)
                else {key: content[key] for key in content.files}
            )
    except DAMAGES as error:
        raise RefusedError(f"{path} is not an .npz or .npy file of plain arrays: {first_line(error)}") from error
    if name and name not in arrays:
        raise RefusedError(f"{path} has no array {name}; it has {', '.join(sorted(arrays)) or 'none'}")
    return [
        {ONLY_INPUT: arrays[name], **{key: arrays[key] for key in ("y",) if key in arrays and key != name}}
        if name
        else arrays
    ]


# --- images -----------------------------------------------------------------------------------------------------------


def _is_image(path: str) -> bool:
    """Return whether a path has the suffix of an image."""
    parts = path.split("/")
    return Path(path).suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in parts)


def _shuffled(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of images, in an order that depends on the names only."""
    return tuple(sorted(filter(_is_image, names), key=lambda name: (zlib.crc32(name.encode()), name)))


def _images(source: str) -> list[NamedArrays]:
    """Return the images of a zip file or a folder, including its subfolders."""
    _pillow()
    path = Path(source)
    if path.is_dir():
        images = Images(
            source,
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
        images = Images(source, _shuffled(names), lambda name: _member(path, name))
    if not images.paths:
        raise RefusedError(f"{source} holds no images ({', '.join(sorted(SUFFIXES))})")
    return [{ONLY_INPUT: images}]


def _member(path: Path, name: str) -> bytes:
    """Return the bytes of a file in a zip file."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


# --- test data of the model zoo ---------------------------------------------------------------------------------------


def _test_sets(path: Path) -> list[Path]:
    """Return the folders with input_0.pb, input_1.pb and so on: the folder itself, or its subfolders."""
    sets = [path, *sorted(path.glob("test_data*"))] if path.is_dir() else []
    return [folder for folder in sets if any(folder.glob("input_*.pb"))]


def _test_data(source: str) -> list[NamedArrays]:
    """Return the tensors of input_*.pb in each folder of test data.

    A tensor is stored under its own name, if it has one, and under the number of its file: #0 for input_0.pb.
    """
    parts: list[NamedArrays] = []
    for folder in _test_sets(Path(source)):
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


# --- readers ----------------------------------------------------------------------------------------------------------


def _factory(source: str) -> list[NamedArrays]:
    """Return the samples of module:factory().

    It returns an object with get_next(), like onnxruntime's CalibrationDataReader, or an iterable of feeds.
    """
    module, _, name = source.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return from_object(getattr(import_module(module), name)(), source)
    except (RefusedError, UsageError):
        raise
    except Exception as error:
        raise UsageError(f"--data {source} fails: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.remove(folder)


MOST = 4096
"""The maximum number of feeds that are read from a reader, which may never end."""


def from_object(data: Any, where: str = "data") -> list[NamedArrays]:
    """Return the feeds of a mapping of arrays, an object with get_next(), or an iterable of feeds.

    Args:
        data: The object.
        where: The name of the data in messages.

    Raises:
        UsageError: The object is none of these, or it yields something other than feeds.
        RefusedError: It yields no feeds.
    """
    if isinstance(data, Mapping):
        return [{str(name): np.asarray(array) for name, array in data.items()}]
    feeds = iter(data.get_next, None) if hasattr(data, "get_next") else data
    if not isinstance(feeds, Iterable):
        raise UsageError(
            f"{where} is {type(data).__name__}, expected an object with get_next() or an iterable of feeds"
        )
    parts: list[NamedArrays] = []
    for feed, _ in zip(feeds, range(MOST), strict=False):
        if not isinstance(feed, Mapping):
            raise UsageError(f"{where} yields {type(feed).__name__}, expected feeds: dicts from input names to arrays")
        parts.append({str(name): np.asarray(array) for name, array in feed.items()})
    if not parts:
        raise RefusedError(f"{where} yields no feeds; a reader that was read before needs rewind()")
    return parts


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of source.

    Args:
        fits: Returns whether a path or a name is of this kind.
        read: Returns its arrays.
    """

    fits: Callable[[str], bool]
    read: Callable[[str], list[NamedArrays]]


def _file(source: str) -> Path:
    """Return the path without the name of an array."""
    return Path(source) if Path(source).exists() else Path(source.rpartition(":")[0] or source)


SOURCES: Mapping[str, SourceKind] = {
    "arrays": SourceKind(lambda source: _file(source).suffix in (".npz", ".npy"), _arrays),
    "test data": SourceKind(lambda source: bool(_test_sets(Path(source))), _test_data),
    "images": SourceKind(lambda source: Path(source).is_dir() or Path(source).suffix == ".zip", _images),
    "reader": SourceKind(lambda source: not Path(source).exists() and FACTORY.fullmatch(source) is not None, _factory),
}
"""The kinds of --data. The first that fits reads the data; if none fits, the data is read as arrays."""


def read_parts(data: object) -> tuple[str, list[NamedArrays]]:
    """Read samples of any kind.

    Args:
        data: A path, `module:factory`, a mapping of arrays, or an iterable of feeds.

    Returns:
        (the name of the data in messages, the parts).

    Raises:
        UsageError: The data does not exist or is of no known kind.
        RefusedError: The data is damaged.
    """
    if not isinstance(data, str | Path):
        return "data", from_object(data)
    text = str(data)
    source_kind = next((source_kind for source_kind in SOURCES.values() if source_kind.fits(text)), SOURCES["arrays"])
    return text, source_kind.read(text)
