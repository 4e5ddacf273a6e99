"""Readers of frames and label files, and what they report of a file that does not fit.

A label file holds one id a pixel. Accepted are 8-bit grey and palette images, the latter as the stored indices
whatever their colours, and 16-bit grey, in formats that keep ids as they are: PNG, BMP, GIF and TIFF without lossy
compression. Formats that may be lossy (JPEG, JPEG 2000, WebP, AVIF) or stretch values (PGM) are refused: their ids
would be guesses. An annotation of a dataset has ids that fit a byte and no colours; a label file made elsewhere may
also be a colour image, whose colours a palette translates (palette.py), or an .npy array of whole numbers.

File ids become classes 0..K-1 with K = void by a lookup table; an id that the table does not know is an error, never
void. Pillow's guard against decompression bombs stays on, an orientation in EXIF is not applied, because annotations
are drawn on the stored pixels, and no pickle is loaded.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
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
_COLOUR_MODES = ("RGB", "RGBA")
_LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd")
# Grey PNGs of 2 and 4 bits are stretched to 0..255 by Pillow; this undoes it.
_STRETCH = {"L;2": 85, "L;4": 17}


_UNCHANGED = np.arange(256, dtype=np.uint8)


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
    ids = _read_picture(path, "annotation", _ID_MODES, "one id a pixel: an 8-bit grey or palette PNG").values
    if ids.dtype.itemsize > 1 and (ids.min() < 0 or ids.max() > REFUSED):
        found = f"annotation with ids from {ids.min()} to {ids.max()}"
        raise FileProblem(Finding(str(path), found, "0..255", "write the ids of the classes"))
    return ids.astype(np.uint8, copy=False)


class LabelFile(NamedTuple):
    """What a label file stores: ids, or in a colour image R + 256 G + 65536 B of each pixel.

    `palette` are the colours of a palette image, one a row; its ids are the stored indices.
    """

    values: Integer[np.ndarray, "h w"]
    is_colour: bool = False
    palette: UInt8[np.ndarray, "n 3"] | None = None


def read_label_file(path: Path, what: str) -> LabelFile:
    """A label map made anywhere: an image of ids or of colours (alpha is dropped), or an .npy array [h, w] or
    [1, h, w] of whole numbers or truth values.

    `what` is what errors call the file, as in "prediction". Raises `FileProblem` for a missing, broken or lossy file.
    """
    if path.suffix.lower() == ".npy":
        return LabelFile(_read_npy(path, what))
    allowed = "one id a pixel (an 8-bit grey or palette PNG, or .npy) or 8-bit RGB in the colours of the classes"
    return _read_picture(path, what, (*_ID_MODES, *_COLOUR_MODES), allowed)


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
    labels = look_up(ids, table)
    if labels.max() == REFUSED:
        raise FileProblem(refusal(ids, labels, table, path))
    return labels


def look_up(ids: Integer[np.ndarray, "h w"], table: UInt8[np.ndarray, "256"]) -> UInt8[np.ndarray, "h w"]:
    """The table's entry of each id, `REFUSED` for ids beyond a byte. Gives `ids` itself where that is the answer."""
    if ids.dtype != np.uint8:
        if ids.min() >= 0 and ids.max() <= 255:
            return look_up(ids.astype(np.uint8), table)
        outside = (ids < 0) | (ids > 255)
        labels = look_up(np.where(outside, 0, ids).astype(np.uint8), table)
        return np.where(outside, np.uint8(REFUSED), labels)
    changed = table != _UNCHANGED
    if not changed.any() or ids.max() < changed.argmax():
        return ids
    # Indexing would first turn the ids into 8 bytes a pixel; the copy is there to be written to.
    return np.frombuffer(ids.tobytes().translate(table.tobytes()), np.uint8).reshape(ids.shape).copy()


def refusal(
    ids: Integer[np.ndarray, "h w"], labels: UInt8[np.ndarray, "h w"], table: UInt8[np.ndarray, "256"], path: Path
) -> Finding:
    """Which ids `look_up` refused, in how many pixels."""
    outside = labels == REFUSED
    values = np.unique(ids[outside])
    more = f" and {len(values) - 8} more" if len(values) > 8 else ""
    found = f"label values {', '.join(str(value) for value in values[:8])}{more} in {int(outside.sum())} pixels"
    allowed = spans(np.flatnonzero(table != REFUSED).tolist())
    return Finding(str(path), found, allowed, "give these pixels the id of a class or of void")


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


def _read_picture(path: Path, what: str, modes: tuple[str, ...], allowed: str) -> LabelFile:
    with _opened(path, what) as image:
        # Asked first, because Pillow forgets it on loading.
        stretch = _STRETCH.get(_raw_mode(image), 1)
        keeps, deep = _keeps_ids(image), _is_deep(image)
        _load(image, path, what)
        is_colour = image.mode in _COLOUR_MODES
        if not keeps or image.mode not in modes or (is_colour and deep):
            compression = f" ({image.info['compression']})" if image.format == "TIFF" else ""
            found = f"{what} stored as {image.format}{compression} of mode {image.mode}"
            found += ", 16 bits a channel" if is_colour and deep else ""
            raise FileProblem(Finding(str(path), found, allowed, "write class ids, not colours"))
        if is_colour:
            return LabelFile(_colour_codes(image), is_colour=True)
        ids = np.array(image)
        colours = image.getpalette("RGB") if image.mode == "P" else None
    if stretch > 1:
        ids //= np.uint8(stretch)
    palette = np.frombuffer(bytes(colours), np.uint8).reshape(-1, 3) if colours else None
    return LabelFile(ids.astype(np.uint8) if ids.dtype == np.bool_ else ids, palette=palette)


def _colour_codes(image: Image.Image) -> Integer[np.ndarray, "h w"]:
    data = image.tobytes("raw", "RGBX") if image.mode == "RGB" else image.tobytes()
    return (np.frombuffer(data, "<u4") & 0xFFFFFF).reshape(image.height, image.width)


def _read_npy(path: Path, what: str) -> Integer[np.ndarray, "h w"]:
    if not path.is_file():
        raise _missing(path, what)
    try:
        # Mapped, so that the header is read, and its size compared with the file's, before any memory is taken.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (*_BROKEN, MemoryError) as error:
        raise _unreadable(path, what, error, "a whole .npy file without pickled objects") from None
    if not isinstance(stored, np.ndarray):
        found = f"{what} is an archive of arrays"
        raise FileProblem(Finding(str(path), found, "one array, as np.save writes it", "save one array a file"))
    plane = stored[0] if stored.ndim == 3 and len(stored) == 1 else stored
    if plane.ndim != 2 or plane.size == 0 or plane.dtype.kind not in "biu":
        found = f"{what} is an array [{', '.join(str(side) for side in stored.shape)}] of {stored.dtype}"
        allowed = "whole numbers [h, w] or [1, h, w]"
        raise FileProblem(Finding(str(path), found, allowed, "save the ids of the classes, the argmax of scores"))
    kind = np.uint8 if plane.dtype.kind == "b" else plane.dtype.newbyteorder("=")
    return np.array(plane, kind, order="C", subok=False)


def _opened(path: Path, what: str) -> Image.Image:
    if not path.is_file():
        raise _missing(path, what)
    try:
        return Image.open(path)
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise _unreadable(path, what, error) from None


def _load(image: Image.Image, path: Path, what: str) -> None:
    try:
        image.load()
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise _unreadable(path, what, error) from None


def _missing(path: Path, what: str) -> FileProblem:
    return FileProblem(Finding(str(path), f"{what} is missing", "an image file", "restore it, or take it off the list"))


def _unreadable(path: Path, what: str, error: Exception, allowed: str = "a whole image file") -> FileProblem:
    # Pillow repeats the path in some messages; the finding has it already.
    reason = " ".join(str(error).replace(f" '{path}'", "").split()) or type(error).__name__
    return FileProblem(Finding(str(path), f"{what} cannot be read ({reason})", allowed, "copy it anew"))


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


def spans(values: list[int]) -> str:
    """[0, 1, 2, 255] -> "0..2, 255"."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(f"{first}..{last}" if last > first else str(first) for first, last in spans)
