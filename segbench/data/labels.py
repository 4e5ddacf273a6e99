"""Readers of frames and annotations, and what they report of a file that does not fit.

An annotation holds one id a pixel. Accepted are 8-bit grey and palette images, the latter as the stored indices
whatever their colours, and 16-bit grey where every id fits a byte, in formats that keep ids as they are: PNG, BMP, GIF
and TIFF without lossy compression. Colour images are refused, and formats that may be lossy (JPEG, JPEG 2000, WebP,
AVIF) or stretch values (PGM): their ids would be guesses. File ids become classes 0..K-1 with K = void by a lookup
table; an id that the table does not know is an error, never void. Pillow's guard against decompression bombs stays on,
and an orientation in EXIF is not applied, because annotations are drawn on the stored pixels.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from segbench.errors import DataError

# A key that hashes data also hashes this: raise it when the same file would be read as other pixels.
READER_VERSION = 1

REFUSED = 255  # in a lookup table: an id that no class has

# What Pillow's decoders raise on broken files and unknown variants; a broken PNG chunk is a SyntaxError, and
# RuntimeError includes NotImplementedError.
_BROKEN_DATA = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError)
_BROKEN = (*_BROKEN_DATA, RuntimeError, struct.error, zlib.error)
_ID_FORMATS = ("PNG", "BMP", "GIF", "TIFF")
_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B")
_LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd")
# Grey PNGs of 2 and 4 bits are stretched to 0..255 by Pillow; this undoes it.
_STRETCH = {"L;2": 85, "L;4": 17}


class Finding(NamedTuple):
    """What is wrong with one file, in the four parts of an error message."""

    file: str
    found: str
    allowed: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.found}; allowed: {self.allowed}; {self.remedy}"


class FileProblem(DataError):
    """A `DataError` about one file; `finding` holds its parts."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)

    @property
    def finding(self) -> Finding:
        found: Finding = self.args[0]
        return found


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A frame as RGB; alpha is dropped. Raises `FileProblem` for a missing or broken file, and for more than 8 bits a
    channel in PNG, TIFF and PPM."""
    with _opened(path, "frame") as image:
        deep = _is_deep(image)  # asked first, because Pillow forgets it on loading
        _load(image, path, "frame")
        if deep or image.mode.startswith(("I", "F")):
            found = f"frame of mode {image.mode}" + (", stored with 16 bits" if deep else "")
            raise FileProblem(Finding(str(path), found, "8 bits a channel", "convert it to 8-bit RGB"))
        return np.array(image.convert("RGB"))


def read_ids(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The ids that an annotation stores. Raises `FileProblem` for a missing, broken, colour or lossy file."""
    with _opened(path, "annotation") as image:
        stretch = _STRETCH.get(_raw_mode(image), 1)  # asked first, because Pillow forgets it on loading
        keeps = _keeps_ids(image)
        _load(image, path, "annotation")
        if not keeps or image.mode not in _ID_MODES:
            compression = f" ({image.info['compression']})" if image.format == "TIFF" else ""
            found = f"annotation stored as {image.format}{compression} of mode {image.mode}"
            allowed = "one id a pixel: an 8-bit grey or palette PNG"
            raise FileProblem(Finding(str(path), found, allowed, "write class ids, not colours"))
        ids = np.array(image)
    if ids.dtype.itemsize > 1 and (ids.min() < 0 or ids.max() > REFUSED):
        found = f"annotation with ids from {ids.min()} to {ids.max()}"
        raise FileProblem(Finding(str(path), found, "0..255", "write the ids of the classes"))
    return (ids // stretch).astype(np.uint8)


def stored_size(path: Path) -> tuple[int, int] | None:
    """(height, width) from the file's header; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (*_BROKEN, Image.DecompressionBombError):
        return None


def lookup(classes: Mapping[int, int]) -> UInt8[np.ndarray, "256"]:
    """The table from file id to class, `REFUSED` for every id that `classes` leaves out."""
    table = np.full(256, REFUSED, np.uint8)
    for file_id, class_id in classes.items():
        table[file_id] = class_id
    return table


def translate(ids: UInt8[np.ndarray, "h w"], table: UInt8[np.ndarray, "256"], path: Path) -> UInt8[np.ndarray, "h w"]:
    """File ids to classes; raises `FileProblem` with the ids that no class has and how many pixels hold them."""
    labels = table[ids]
    outside = labels == REFUSED
    if outside.any():
        values = ", ".join(str(value) for value in np.unique(ids[outside])[:8])
        found = f"label values {values} in {int(outside.sum())} pixels"
        allowed = _spans(np.flatnonzero(table != REFUSED).tolist())
        raise FileProblem(Finding(str(path), found, allowed, "give these pixels the id of a class or of void"))
    return labels


def resize_image(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Pillow's BILINEAR, whose support grows with the reduction (antialiased)."""
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_labels(labels: UInt8[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "rows columns"]:
    """Pillow's NEAREST: the label under the centre of each new pixel."""
    if labels.shape == size:
        return labels
    return np.array(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _opened(path: Path, what: str) -> Image.Image:
    if not path.is_file():
        raise FileProblem(
            Finding(str(path), f"{what} is missing", "an image file", "restore it, or take it off the list")
        )
    try:
        return Image.open(path)
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise _unreadable(path, what, error) from None


def _load(image: Image.Image, path: Path, what: str) -> None:
    try:
        image.load()
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise _unreadable(path, what, error) from None


def _unreadable(path: Path, what: str, error: Exception) -> FileProblem:
    # Pillow repeats the path in some messages; the finding has it already.
    reason = " ".join(str(error).replace(f"'{path}'", "the file").split()) or type(error).__name__
    return FileProblem(Finding(str(path), f"{what} cannot be read ({reason})", "a whole image file", "copy it anew"))


def _keeps_ids(image: Image.Image) -> bool:
    """Whether the format gives back the numbers that were put in."""
    if image.format == "TIFF" and image.info.get("compression") not in _LOSSLESS_TIFF:
        return False
    # Pillow turns TIFFs in which 0 is white into their negative ("L;I").
    return image.format in _ID_FORMATS and not _raw_mode(image).endswith("I")


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow is about to cut a channel's 16 bits to 8. "BGR;16" is a pixel of 16 bits, 5 or 6 a channel."""
    raw = _raw_mode(image)
    if image.format == "PPM" and isinstance(image, ImageFile.ImageFile) and image.tile:
        arguments = image.tile[0][3]
        return isinstance(arguments, tuple) and len(arguments) > 1 and arguments[1] > 255
    return ";16" in raw and not raw.startswith("BGR")


def _raw_mode(image: Image.Image) -> str:
    raw = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    return raw if isinstance(raw, str) else str(raw[0]) if raw else ""


def _spans(values: list[int]) -> str:
    """[0, 1, 2, 255] -> "0..2, 255"."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(f"{first}..{last}" if last > first else str(first) for first, last in spans)
