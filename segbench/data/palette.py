"""Colours of classes: from a colour image back to classes, and the doubts that a colour can raise.

A colour stands for a class only if it is exactly the palette's. Anything else (smoothed edges, lossy compression,
another palette, blue and red exchanged) is refused with the nearest colour that is known.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from segbench.data.dataset import Colour
from segbench.data.labels import REFUSED, Finding

LISTED = 4  # smoothed edges bring thousands of colours; the commonest tell what happened


class Palette:
    """The colour of each class, and of void where it has one. Raises ValueError where two of them are equal."""

    def __init__(self, names: Sequence[str], colours: Sequence[Colour], void_colour: Colour | None) -> None:
        self.colours = (*colours, *([void_colour] if void_colour else []))
        self.names = (*names, *(["void"] if void_colour else []))
        codes = [code_of(colour) for colour in self.colours]
        if len(set(codes)) < len(codes):
            twice = next(colour for colour in self.colours if self.colours.count(colour) > 1)
            both = [name for name, colour in zip(self.names, self.colours, strict=True) if colour == twice]
            raise ValueError(f"{twice} is the colour of both {both[0]} and {both[1]}")
        self._class_of = {code: index for index, code in enumerate(codes)}
        self._codes = np.array(sorted(codes), np.uint32)
        self._classes = np.array([self._class_of[code] for code in sorted(codes)], np.uint8)

    def classes(self, codes: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """The class 0..K-1, or K for void, of each colour (R + 256 G + 65536 B), `REFUSED` where it is none of them."""
        flat = codes.ravel()
        # Neighbours are mostly alike: one search for each run of a colour.
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        colours = flat[starts]
        places = np.minimum(np.searchsorted(self._codes, colours), len(self._codes) - 1)
        found = np.where(self._codes[places] == colours, self._classes[places], np.uint8(REFUSED))
        return np.repeat(found, np.diff(np.append(starts, flat.size))).reshape(codes.shape)

    def refusal(self, codes: Integer[np.ndarray, "h w"], labels: UInt8[np.ndarray, "h w"], path: Path) -> Finding:
        """Which colours `classes` refused, in how many pixels, and the nearest that are known."""
        values, pixels = np.unique(codes[labels == REFUSED], return_counts=True)
        unknown = [_rgb(code) for code in values.tolist()]
        most = np.argsort(-pixels, kind="stable")[:LISTED]
        listed = [f"{unknown[i]} in {pixels[i]} pixels (nearest: {self._nearest(unknown[i])})" for i in most]
        more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        found = f"colours without a class: {', '.join(listed)}{more}, {pixels.sum()} pixels in all"
        allowed = f"the {len(self.colours)} colours of the palette, exactly"
        return Finding(str(path), found, allowed, self._remedy(unknown))

    def displaced(
        self, colours: UInt8[np.ndarray, "n 3"], ids: UInt8[np.ndarray, "h w"], table: UInt8[np.ndarray, "256"]
    ) -> dict[int, tuple[str, str]]:
        """Where a palette image's colours speak against its indices: index -> (class by colour, class by index).

        Tools that optimise a palette keep the colours and renumber the indices. So only a palette whose every colour
        is known is taken at its word; any other is decoration. Black says nothing: palettes are filled up with it.
        """
        codes = colours.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)
        found = self.classes(codes[None])[0]
        if (found[codes > 0] == REFUSED).any():
            return {}
        doubtful = np.flatnonzero((codes > 0) & (found != table[: len(found)]))
        used = np.intersect1d(doubtful, ids) if len(doubtful) else doubtful
        known = {**dict(enumerate(self.names)), REFUSED: "no class"}
        return {int(i): (self.names[found[i]], known.get(int(table[i]), "void")) for i in used}

    def _nearest(self, colour: Colour) -> str:
        distances = [sum((a - b) ** 2 for a, b in zip(colour, known, strict=True)) for known in self.colours]
        place = distances.index(min(distances))
        return f"{self.names[place]} {self.colours[place]}"

    def _remedy(self, unknown: Sequence[Colour]) -> str:
        if all(code_of(colour[::-1]) in self._class_of for colour in unknown):
            return "exchange red and blue: the file was written as BGR"
        if all(r == g == b for r, g, b in unknown):
            return "write ids as one channel of grey, not three"
        return "save without smoothing or loss and in this palette, or write class ids"


def code_of(colour: Sequence[int]) -> int:
    """(R, G, B) -> R + 256 G + 65536 B."""
    return colour[0] + (colour[1] << 8) + (colour[2] << 16)


def _rgb(code: int) -> Colour:
    return code & 255, code >> 8 & 255, code >> 16
