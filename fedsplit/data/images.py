"""Images without torch: where they lie, and how they become the numbers a vision model was pretrained on.

An image is uint8 of shape (H, W, C). Folders hold one sub-folder a class; ``.npz`` holds arrays ``images`` (N, H, W, C)
or (N, H, W) and ``labels`` (N,). Only decoding image files needs Pillow; resizing is done here.
"""

from __future__ import annotations

import importlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.errors import DataError, MissingExtra

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm"}
_NPZ_IMAGES, _NPZ_LABELS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Preparation:
    """What a vision model expects: ``size`` (height, width), then ``(value * scale - mean) / std`` for each channel."""

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    scale: float = 1 / 255

    def resize(self, image: Pixels) -> Pixels:
        """(H, W, C) of any size to ``size``, with as many channels as ``mean`` has (grey is repeated)."""
        channels = len(self.mean)
        if image.shape[2] != channels:
            image = np.repeat(image[:, :, :1], channels, 2) if image.shape[2] < channels else image[:, :, :channels]
        return resize(np.ascontiguousarray(image), *self.size)

    def normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, C) uint8 to (B, C, H, W) float32."""
        values: NDArray[np.float32] = images.astype(np.float32) * np.float32(self.scale)
        values -= np.asarray(self.mean, np.float32)
        values /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def preparation(model: str | Path) -> Preparation:
    """What the model in this folder expects, from its ``preprocessor_config.json`` and ``config.json``.

    :raises DataError: if neither file names an image size, or one of them is damaged.
    """
    folder = Path(model)
    config, found = _json(folder / "config.json"), _json(folder / "preprocessor_config.json")
    try:
        return _preparation(config, found, folder)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        what = f"found a size, mean, std or scale that is none ({error!r})"
        raise DataError(f"{what}; expected numbers, as the model was published", str(folder)) from None


def _preparation(config: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> Preparation:
    size = found.get("size", config.get("image_size"))
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
    if size is None:
        expected = "image_size in config.json or size in preprocessor_config.json"
        raise DataError(f"found no image size; expected {expected}", str(folder))
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    channels = int(config.get("num_channels", 3))
    normal = found.get("do_normalize", True)
    mean = found.get("image_mean", [0.5] * channels) if normal else [0.0] * channels
    std = found.get("image_std", [0.5] * channels) if normal else [1.0] * channels
    scale = float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0
    return Preparation((height, width), tuple(map(float, mean[:channels])), tuple(map(float, std[:channels])), scale)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:  # text that is not UTF-8 is a ValueError, too
        raise DataError(f"not readable as JSON: {error}; fetch the model again", str(file)) from None
    if not isinstance(value, dict):
        raise DataError(f"found {type(value).__name__}; expected a JSON object; fetch the model again", str(file))
    return value


def is_image_folder(folder: Path) -> bool:
    """True if a sub-folder holds at least one image file."""
    return any(one.suffix.lower() in _SUFFIXES for sub in folder.iterdir() if sub.is_dir() for one in sub.iterdir())


def folder_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """``{"image": path, "label": name of the sub-folder}``, sorted by class and file name."""
    for sub in sorted(one for one in folder.iterdir() if one.is_dir()):
        for file in sorted(sub.iterdir()):
            if file.suffix.lower() in _SUFFIXES:
                yield {"image": str(file), "label": sub.name}


def npz_rows(file: Path) -> Iterator[dict[str, Any]]:
    """``{"image": (H, W, C) uint8, "label": int}`` of every image.

    :raises DataError: for a damaged file, missing arrays, or shapes that do not go together.
    """
    images, labels = _npz(file)
    for image, label in zip(images, labels, strict=True):
        yield {"image": image, "label": label.item()}


def _npz(file: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names = (next((one for one in usual if one in arrays), "") for usual in (_NPZ_IMAGES, _NPZ_LABELS))
            name, label_name = names
            if not name or not label_name:
                found = ", ".join(arrays.files) or "nothing"
                raise DataError(f"found the arrays {found}; expected images and labels", str(file))
            images, labels = arrays[name], arrays[label_name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"not a readable .npz file: {error}", str(file)) from None
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        found = f"{images.dtype} of shape {images.shape}"
        raise DataError(f"images are {found}; expected uint8 of shape (N, H, W) or (N, H, W, 1, 3 or 4)", str(file))
    if labels.shape != images.shape[:1]:
        raise DataError(f"labels have the shape {labels.shape}; expected ({len(images)},), one an image", str(file))
    return images, labels


def decode(source: Any, file: str, line: int) -> Pixels:
    """An image as uint8 (H, W, C): from an array, a path (relative to ``file``'s folder), or a datasets image cell.

    :raises DataError: if it is absent or no image.
    :raises MissingExtra: if Pillow is not installed; only needed here.
    """
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, Mapping) and source.get("bytes"):
        return _pillow(source["bytes"], file, line)
    path = source.get("path") if isinstance(source, Mapping) else source
    if not isinstance(path, str) or not path:
        raise DataError(f"found {source!r}; expected the path of an image", file, line)
    full = Path(path) if Path(path).is_absolute() or str(path) == file else Path(file).parent / path
    if not full.is_file():
        raise DataError(f"there is no image {full}; paths are relative to the data file", file, line)
    return _pillow(full.read_bytes(), str(full), None if str(full) == file else line)


def _pillow(raw: bytes, file: str, line: int | None) -> Pixels:
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError:
        raise MissingExtra("Pillow, which reads image files,", "data") from None
    try:
        with pillow.open(io.BytesIO(raw)) as image:
            return np.asarray(image.convert("RGB"))
    except pillow.DecompressionBombError as error:
        raise DataError(f"too large an image: {error}; make it smaller or leave it out", file, line) from None
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error) as error:
        raise DataError(f"not a readable image: {error}", file, line) from None


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Bilinear with antialiasing, columns then rows, rounded in between: what Pillow's ``BILINEAR`` does."""
    if image.shape[1] != width:
        image = _rounded(np.einsum("wj,hjc->hwc", _triangle(image.shape[1], width), image.astype(np.float64)))
    if image.shape[0] != height:
        image = _rounded(np.einsum("hi,iwc->hwc", _triangle(image.shape[0], height), image.astype(np.float64)))
    return image


def _rounded(values: NDArray[np.float64]) -> Pixels:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _triangle(size: int, wanted: int) -> NDArray[np.float64]:
    """(wanted, size) weights of a triangle filter as wide as the shrinking demands."""
    scale = size / wanted
    support = max(scale, 1.0)
    centres = (np.arange(wanted)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size)[None, :] + 0.5 - centres) / support)
    normalised: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return normalised
