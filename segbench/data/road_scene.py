"""Draws one road scene, frame and labels, from integers as seed. What it promises stands in `synthetic.py`.

A pinhole camera stands `CAMERA` above a flat straight road. Lengths are decimetres, `x` to the right of the camera, `z`
ahead of it; a length l at distance z spans l * focal // z pixels. Things are painted from far to near, so nearer ones
hide those behind. Integers only: floats round differently from machine to machine.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, VOID = range(12)
CAMERA = 14
FARTHEST = 700

Colour = tuple[int, int, int]

SKIES = ((225, 230, 235), (185, 202, 225), (145, 178, 220), (212, 212, 208))
WALLS = (
    (150, 92, 76),
    (176, 166, 146),
    (122, 116, 110),
    (200, 190, 170),
    (104, 84, 74),
    (165, 140, 112),
    (98, 102, 112),
)
METALS = ((112, 112, 110), (82, 86, 80), (150, 150, 146), (62, 62, 66))
LEAVES = ((52, 76, 36), (72, 92, 46), (86, 96, 50), (42, 56, 36), (104, 94, 62))
BOARDS = ((200, 60, 50), (40, 72, 150), (222, 200, 84), (226, 226, 222), (52, 120, 72))
RAILS = ((122, 122, 116), (92, 72, 56), (62, 72, 62), (164, 164, 160))
PAINTS = ((200, 200, 205), (42, 42, 46), (150, 32, 32), (42, 62, 110), (130, 134, 140), (72, 90, 72))
CLOTHES = ((42, 42, 50), (92, 52, 46), (62, 72, 102), (152, 142, 130), (112, 32, 36), (32, 62, 52))
SKIN = (172, 128, 102)
GLASS = (52, 60, 70)
SHADE = (34, 34, 36)


class Chance:
    """RandomState's integers, of a stated width because the default differs between systems."""

    def __init__(self, seed: Sequence[int]) -> None:
        self.state = np.random.RandomState(list(seed))
        self.words: list[int] = []

    def between(self, low: int, high: int) -> int:
        """Both ends included."""
        if not self.words:
            # One call for many words: a scene takes hundreds.
            self.words = self.state.randint(0, 1 << 16, 512, dtype=np.uint16).tolist()
        return low + (self.words.pop() * (high - low + 1) >> 16)

    def percent(self, likely: int) -> bool:
        return self.between(0, 99) < likely

    def one_of(self, colours: Sequence[Colour], spread: int = 14) -> Colour:
        """One of the colours, lighter or darker and a little off in hue."""
        red, green, blue = colours[self.between(0, len(colours) - 1)]
        light = self.between(-spread, spread)
        hue = spread // 3
        return (
            red + light + self.between(-hue, hue),
            green + light + self.between(-hue, hue),
            blue + light + self.between(-hue, hue),
        )

    def grains(self, shape: tuple[int, ...]) -> np.ndarray:
        """An int32 array of 0..255."""
        return self.state.randint(0, 256, shape, dtype=np.uint8).astype(np.int32)

    def smooth(self, h: int, w: int, rows: int, columns: int) -> Int32[np.ndarray, "{h} {w}"]:
        """Noise of 0..255 that varies over about h/rows by w/columns pixels."""
        grid = self.grains((rows + 2, columns + 2))
        y, x = np.arange(h, dtype=np.int32) * (rows * 256) // h, np.arange(w, dtype=np.int32) * (columns * 256) // w
        down, along = (y & 255)[:, None], x & 255
        lines = (grid[y >> 8] * (256 - down) + grid[(y >> 8) + 1] * down) >> 8
        return (lines[:, x >> 8] * (256 - along) + lines[:, (x >> 8) + 1] * along) >> 8


class Street(NamedTuple):
    """Where the camera looks and where things stand; x of the kerbs and of the facades."""

    horizon: int
    centre: int
    focal: int
    kerbs: tuple[int, int]
    facades: tuple[int, int]
    haze: Colour

    def row(self, z: int) -> int:
        """Of the ground at a distance."""
        return self.horizon + CAMERA * self.focal // z

    def column(self, x: int, z: int) -> int:
        return self.centre + x * self.focal // z

    def pixels(self, length: int, z: int) -> int:
        """At least one, so that no pole vanishes."""
        return max(1, (length * self.focal + z // 2) // z)

    def seen(self, colour: Colour, z: int) -> Colour:
        """A colour through the haze."""
        (r, g, b), (far_r, far_g, far_b), all_of_it = colour, self.haze, 1600 + z
        return (
            (r * 1600 + far_r * z) // all_of_it,
            (g * 1600 + far_g * z) // all_of_it,
            (b * 1600 + far_b * z) // all_of_it,
        )


class Canvas:
    """Labels, colours and the strength of texture, painted together; boxes are clipped to the frame."""

    def __init__(self, h: int, w: int) -> None:
        self.h, self.w = h, w
        self.labels = np.full((h, w), SKY, np.uint8)
        self.image = np.zeros((h, w, 3), np.int32)
        self.grain = np.zeros((h, w), np.int32)

    def box(self, label: int, colour: Colour, grain: int, top: int, bottom: int, left: int, right: int) -> None:
        """Rows top..bottom-1, columns left..right-1."""
        if right <= 0 or bottom <= 0 or left >= self.w:
            return
        rows, columns = slice(max(0, top), bottom), slice(max(0, left), right)
        self.labels[rows, columns] = label
        self.image[rows, columns] = colour
        self.grain[rows, columns] = grain

    def ellipse(
        self, label: int, colour: Colour, grain: int, y: int, x: int, ry: int, rx: int, rough: np.ndarray | None = None
    ) -> None:
        """Around (y, x); `rough` (0..255 over the frame) eats into the rim."""
        rows = slice(max(0, y - ry), min(self.h, y + ry + 1))
        columns = slice(max(0, x - rx), min(self.w, x + rx + 1))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        down = np.arange(rows.start, rows.stop, dtype=np.int64)[:, None] - y
        along = np.arange(columns.start, columns.stop, dtype=np.int64) - x
        # An ellipse through the pixels' outer edges: radii of ry + 1/2 and rx + 1/2.
        a, b = 2 * ry + 1, 2 * rx + 1
        reach = 4 * (down * down * (b * b) + along * along * (a * a))
        limit = (a * b) ** 2 if rough is None else ((a * b) ** 2 >> 8) * (330 - rough[rows, columns].astype(np.int64))
        inside = reach <= np.minimum(limit, (a * b) ** 2)
        self.labels[rows, columns][inside] = label
        self.image[rows, columns][inside] = colour
        self.grain[rows, columns][inside] = grain


class Thing(NamedTuple):
    """Something at a distance, and how to paint it."""

    z: int
    paint: Callable[[], None]


def draw_scene(
    seed: Sequence[int], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Frame (RGB) and labels (0..10, void 11) of a scene."""
    h, w = size
    chance = Chance(seed)
    canvas = Canvas(h, w)
    street = _street(chance, h, w)
    clumps = chance.smooth(h, w, 14, 18)
    _sky(canvas, street, chance)
    _skyline(canvas, street, chance)
    _ground(canvas, street, chance)
    _facades(canvas, street, chance)
    for thing in sorted(_things(canvas, street, chance, clumps), key=lambda thing: -thing.z):
        thing.paint()
    if chance.percent(55):
        _bonnet(canvas, chance)
    return _exposed(canvas, chance, clumps), canvas.labels


def _street(chance: Chance, h: int, w: int) -> Street:
    left, right = -chance.between(24, 58), chance.between(22, 46)
    return Street(
        horizon=h * chance.between(44, 54) // 100,
        centre=w * chance.between(38, 62) // 100,
        focal=w * chance.between(75, 95) // 100,
        kerbs=(left, right),
        facades=(left - chance.between(16, 48), right + chance.between(16, 48)),
        haze=chance.one_of(SKIES),
    )


def _sky(canvas: Canvas, street: Street, chance: Chance) -> None:
    """From a colour above to the haze at the horizon, with clouds."""
    above = np.array(chance.one_of(SKIES), np.int32)
    depth = street.horizon + 1
    fade = np.arange(depth, dtype=np.int32)[:, None, None]
    clouds = (chance.smooth(depth, canvas.w, 3, 4) * chance.between(0, 60) >> 8)[:, :, None]
    canvas.image[:depth] = (above * (depth - fade) + np.array(street.haze, np.int32) * fade) // depth + clouds - 20
    canvas.grain[:depth] = 2


def _skyline(canvas: Canvas, street: Street, chance: Chance) -> None:
    """Far trees and buildings along the horizon."""
    end = 0  # in hundredths of the width, so that a scene takes as many numbers at every size
    while end < 100:
        start, end = end, end + chance.between(4, 16)
        tree = chance.percent(60)
        colour = street.seen(chance.one_of(LEAVES if tree else WALLS), 2 * FARTHEST)
        top = street.horizon - canvas.h * chance.between(2, 11) // 100
        canvas.box(
            TREE if tree else BUILDING,
            colour,
            12 if tree else 6,
            top,
            street.horizon + 1,
            canvas.w * start // 100,
            canvas.w * end // 100,
        )


def _ground(canvas: Canvas, street: Street, chance: Chance) -> None:
    """Road with lane markings and shadow, pavements with their kerbs, grass beyond some of them."""
    below = np.arange(1, canvas.h - street.horizon, dtype=np.int32)[:, None]
    x = (np.arange(canvas.w, dtype=np.int32) - street.centre) * CAMERA // below
    z = CAMERA * street.focal // below
    left, right = street.kerbs
    rows = slice(street.horizon + 1, canvas.h)
    labels, image, grain = canvas.labels[rows], canvas.image[rows], canvas.grain[rows]
    grey = chance.between(84, 122)
    stone = grey + chance.between(4, 34)
    labels[:], image[:], grain[:] = PAVEMENT, (stone + 4, stone, stone - 4), 7
    joints = ((x // 9 + z // 9) & 1 == 1) & (below > canvas.h // 8)
    image[joints] -= 7
    for grass, likely in ((x < street.facades[0] + 8, 40), (x > street.facades[1] - 8, 40)):
        if chance.percent(likely):
            labels[grass], image[grass], grain[grass] = TREE, chance.one_of(LEAVES), 16
    road = (x >= left) & (x <= right)
    labels[road], image[road], grain[road] = ROAD, (grey, grey, grey + chance.between(-3, 6)), 8
    middle = (left + right) // 2 + chance.between(-6, 6)
    dashes = (abs(x - middle) < 2) & (z % 60 < chance.between(25, 45))
    edges = (abs(x - left - 4) < 1) | (abs(x - right + 4) < 1)
    image[dashes | (edges & chance.percent(50))] += chance.between(50, 100)
    kerb = ((x < left) & (x >= left - 2)) | ((x > right) & (x <= right + 2))
    image[kerb] += chance.between(-20, 40)
    if chance.percent(60):
        border = chance.between(left, right)
        shaded = x < border if chance.percent(50) else x > border
        image[shaded] = image[shaded] * chance.between(140, 200) >> 8


class _Block(NamedTuple):
    """A piece of the row along the street, up to a distance."""

    until: int
    label: int
    height: int
    colour: Colour
    bay: int


def _blocks(chance: Chance) -> list[_Block]:
    """One side of the street from near to far."""
    blocks, z = [], 0
    leafy = chance.between(5, 30)
    while z < FARTHEST:
        z += chance.between(50, 200)
        what = chance.between(0, 99)
        bay = chance.between(22, 40)
        if what < leafy:
            blocks.append(_Block(z, TREE, chance.between(30, 90), chance.one_of(LEAVES), bay))
        elif what < leafy + 12:
            blocks.append(_Block(z, FENCE, chance.between(12, 22), chance.one_of(RAILS), bay))
        elif what < leafy + 18:
            blocks.append(_Block(z, SKY, CAMERA, (0, 0, 0), bay))
        else:
            blocks.append(_Block(z, BUILDING, chance.between(60, 160), chance.one_of(WALLS, 24), bay))
    return blocks


def _facades(canvas: Canvas, street: Street, chance: Chance) -> None:
    """Both rows at once: every column sees one block, at the distance where its ray meets the row."""
    left, right = _blocks(chance), _blocks(chance)
    blocks = left + right
    offset = np.arange(canvas.w, dtype=np.int32) - street.centre
    away = np.where(offset < 0, -street.facades[0], street.facades[1]).astype(np.int32)
    across = np.maximum(abs(offset), 1)
    z = away * street.focal // across
    seen = np.where(
        offset < 0,
        np.searchsorted([block.until for block in left[:-1]], z, "right"),
        len(left) + np.searchsorted([block.until for block in right[:-1]], z, "right"),
    )
    label = np.array([block.label for block in blocks], np.uint8)[seen]
    height = np.array([block.height for block in blocks], np.int32)[seen]
    bay = np.array([block.bay for block in blocks], np.int32)[seen]
    ragged = chance.smooth(1, canvas.w, 1, 24)[0]
    height = np.where(label == TREE, height * (140 + ragged) >> 8, height)
    rows = np.arange(canvas.h, dtype=np.int32)[:, None]
    up = (street.horizon - rows) * away // across + CAMERA  # dm above the ground
    wall = (up > 0) & (up <= height) & ((label != SKY) & (z <= FARTHEST))
    near, far = np.array([block.colour for block in blocks], np.int32)[seen], np.array(street.haze, np.int32)
    colour = np.broadcast_to((near * 1600 + far * z[:, None]) // (1600 + z[:, None]), canvas.image.shape)
    canvas.labels[wall] = np.broadcast_to(label, wall.shape)[wall]
    canvas.image[wall] = colour[wall]
    canvas.grain[wall] = np.broadcast_to(np.where(label == TREE, 20, 8), wall.shape)[wall]
    window = (up % bay > bay * 2 // 5) & ((z % bay > bay // 2) & (bay * street.focal > 5 * z)) & (up < height - 8)
    canvas.image[wall & window & (label == BUILDING)] -= chance.between(15, 55)
    canvas.image[wall & (label == FENCE) & (z % 8 < 4)] -= chance.between(10, 40)
    shop = wall & (label == BUILDING) & (up < 30) & (bay > 30)
    canvas.image[shop] = (canvas.image[shop] * 3 + np.array(chance.one_of(PAINTS), np.int32)) >> 2


def _things(canvas: Canvas, street: Street, chance: Chance, clumps: np.ndarray) -> list[Thing]:
    """All that stands or drives on the street, in no order."""
    things: list[Thing] = []

    def stand(times: int, paint: Callable[..., None], x: Callable[[], int], nearest: int, farthest: int) -> None:
        for _ in range(times):
            at, z = x(), chance.between(nearest, farthest)
            things.append(Thing(z, partial(paint, canvas, street, chance, at, z)))

    left, right = street.kerbs

    def kerbside() -> int:
        return left - chance.between(2, 7) if chance.percent(50) else right + chance.between(2, 7)

    def pavement() -> int:
        return (
            chance.between(street.facades[0], left) if chance.percent(50) else chance.between(right, street.facades[1])
        )

    def parked() -> int:
        return left + chance.between(10, 12) if chance.percent(50) else right - chance.between(10, 12)

    def lane() -> int:
        return chance.between(left + 12, right - 12)

    stand(chance.between(0, 3), partial(_tree, clumps), pavement, 90, 400)
    stand(chance.between(1, 5), _pole, kerbside, 70, 400)
    stand(chance.between(1, 4), _sign, kerbside, 60, 240)
    stand(chance.between(1, 5), _car, parked, 50, 280)
    stand(chance.between(0, 2), _car, lane, 90, 400)
    stand(chance.between(0, 5), _pedestrian, pavement, 70, 260)
    stand(chance.between(0, 1), _bicyclist, lane, 80, 250)
    stand(chance.between(0, 1), _railing, kerbside, 60, 160)
    stand(chance.between(0, 4), _clutter, pavement, 60, 240)
    return things


def _tree(clumps: np.ndarray, canvas: Canvas, street: Street, chance: Chance, x: int, z: int) -> None:
    foot, column = street.row(z), street.column(x, z)
    trunk, height = street.pixels(4, z), street.pixels(chance.between(40, 70), z)
    bark = street.seen(chance.one_of(((84, 70, 56), (70, 64, 58))), z)
    canvas.box(TREE, bark, 8, foot - height, foot, column - trunk // 2, column - trunk // 2 + trunk)
    leaves = street.seen(chance.one_of(LEAVES), z)
    radius = street.pixels(chance.between(13, 24), z)
    for _ in range(4):
        dy, dx = chance.between(-radius // 2, radius // 2), chance.between(-radius // 2, radius // 2)
        canvas.ellipse(TREE, leaves, 24, foot - height + dy, column + dx, radius * 4 // 5, radius, clumps)


def _pole(canvas: Canvas, street: Street, chance: Chance, x: int, z: int) -> None:
    """A lamp post with its arm over the road, or a plain column."""
    foot, column, width = street.row(z), street.column(x, z), street.pixels(2, z)
    colour, top = street.seen(chance.one_of(METALS), z), foot - street.pixels(chance.between(45, 85), z)
    canvas.box(POLE, colour, 4, top, foot, column, column + width)
    if chance.percent(50):
        arm = street.pixels(chance.between(8, 16), z)
        left = column if x < 0 else column + width - arm
        canvas.box(POLE, colour, 4, top, top + street.pixels(1, z), left, left + arm)


def _sign(canvas: Canvas, street: Street, chance: Chance, x: int, z: int) -> None:
    """A board, a disc or a traffic light on its pole."""
    foot, column, width = street.row(z), street.column(x, z), street.pixels(1, z)
    top = foot - street.pixels(chance.between(22, 34), z)
    canvas.box(POLE, street.seen(chance.one_of(METALS), z), 4, top, foot, column, column + width)
    half, what = street.pixels(chance.between(4, 7), z), chance.between(0, 2)
    colour = street.seen(chance.one_of(BOARDS, 24), z)
    if what == 0:
        canvas.ellipse(SIGN, colour, 4, top, column, half, half)
        canvas.ellipse(SIGN, street.seen((226, 226, 222), z), 4, top, column, half * 3 // 5, half * 3 // 5)
    elif what == 1:
        canvas.box(SIGN, colour, 4, top - half, top + half, column - half, column + half + width)
    else:
        canvas.box(SIGN, street.seen(SHADE, z), 4, top - half, top + half, column - half // 2, column + half // 2 + 1)
        lamp = (top - half // 2, top + half // 2)[chance.between(0, 1)]
        canvas.ellipse(
            SIGN, ((220, 60, 40), (60, 190, 100))[chance.between(0, 1)], 0, lamp, column, half // 4, half // 4
        )


def _car(canvas: Canvas, street: Street, chance: Chance, x: int, z: int) -> None:
    """Slices of a body from its far end to its near one, then the near end's glass, lamps and wheels."""
    tall, length = (chance.between(19, 28), 55) if chance.percent(20) else (chance.between(14, 16), 40)
    paint = chance.one_of(PAINTS, 20)
    side: Colour = (paint[0] * 3 // 4, paint[1] * 3 // 4, paint[2] * 3 // 4)
    waist = tall * 3 // 5
    for step in range(5, -1, -1):
        at = z + length * step // 5
        foot, left, right = street.row(at), street.column(x - 9, at), street.column(x + 9, at)
        belt = foot - street.pixels(waist, at)
        inset = street.pixels(1, at)
        if 1 <= step <= 4 or tall > 18:
            roof, low = foot - street.pixels(tall, at), (right - left) // 9
            canvas.box(CAR, street.seen(GLASS, at), 4, roof + inset, belt, left + low, right - low)
            canvas.box(CAR, street.seen(paint, at), 4, roof, roof + inset, left + low, right - low)
        canvas.box(CAR, street.seen(side if step else paint, at), 5, belt, foot - inset, left, right)
        if step in (0, 4):
            canvas.box(CAR, SHADE, 4, foot - street.pixels(4, at), foot, left, left + (right - left) // 6 + 1)
            canvas.box(CAR, SHADE, 4, foot - street.pixels(4, at), foot, right - (right - left) // 6 - 1, right)
    lamp = (belt + foot) // 2 - inset
    colour = ((170, 40, 36), (230, 226, 200))[chance.between(0, 1)]
    canvas.box(CAR, colour, 4, lamp - inset, lamp, left, left + (right - left) // 6 + 1)
    canvas.box(CAR, colour, 4, lamp - inset, lamp, right - (right - left) // 6 - 1, right)


def _person(canvas: Canvas, street: Street, chance: Chance, label: int, x: int, z: int, foot: int) -> None:
    """Legs, trunk and head upwards from a row; about 17 dm."""
    column, half = street.column(x, z), street.pixels(5, z) // 2
    hip, shoulder = foot - street.pixels(8, z), foot - street.pixels(14, z)
    legs, coat = street.seen(chance.one_of(CLOTHES), z), street.seen(chance.one_of(CLOTHES, 24), z)
    stride = street.pixels(2, z)
    canvas.box(label, legs, 4, hip, foot, column - half, column - half + stride)
    canvas.box(label, legs, 4, hip, foot, column + half + 1 - stride, column + half + 1)
    canvas.box(label, coat, 6, shoulder, hip, column - half, column + half + 1)
    head = street.pixels(3, z) // 2
    canvas.ellipse(label, street.seen(SKIN, z), 4, shoulder - head - 1, column, head, (head + 1) // 2)


def _pedestrian(canvas: Canvas, street: Street, chance: Chance, x: int, z: int) -> None:
    _person(canvas, street, chance, PEDESTRIAN, x, z, street.row(z))


def _bicyclist(canvas: Canvas, street: Street, chance: Chance, x: int, z: int) -> None:
    """Two wheels from the side, or one from behind, and a rider above them."""
    foot, radius = street.row(z), street.pixels(7, z) // 2
    metal = street.seen(chance.one_of(METALS), z)
    for offset in (-5, 5) if chance.percent(60) else (0,):
        wide = radius if offset else 0
        canvas.ellipse(BICYCLIST, SHADE, 4, foot - radius, street.column(x + offset, z), radius, wide)
        canvas.ellipse(BICYCLIST, metal, 4, foot - radius, street.column(x + offset, z), radius // 2, wide // 2)
    _person(canvas, street, chance, BICYCLIST, x, z, foot - street.pixels(3, z))


def _railing(canvas: Canvas, street: Street, chance: Chance, x: int, z: int) -> None:
    """Panels along the kerb; what is behind shows between the bars, but all of a panel is fence."""
    colour, high = chance.one_of(RAILS), chance.between(9, 12)
    ends = sorted((street.column(x, z), street.column(x, z + chance.between(60, 160))))
    for column in range(max(0, ends[0]), min(canvas.w, ends[1] + 1)):
        across = max(1, abs(column - street.centre))
        foot = street.horizon + CAMERA * across // abs(x)
        top = foot - max(1, high * across // abs(x))
        rows = slice(max(0, top), max(0, foot))
        canvas.labels[rows, column] = FENCE
        rail = slice(max(0, top), max(0, top + 1 + (foot - top) // 8))
        canvas.image[rows if column % 3 == 0 else rail, column] = street.seen(colour, z)


def _clutter(canvas: Canvas, street: Street, chance: Chance, x: int, z: int) -> None:
    """Bins, boxes and works that no class covers: void."""
    foot, half = street.row(z), street.pixels(chance.between(4, 16), z) // 2
    top, column = foot - street.pixels(chance.between(7, 16), z), street.column(x, z)
    colour = street.seen(chance.one_of((*PAINTS, *WALLS, *BOARDS)), z)
    canvas.box(VOID, colour, 10, top, foot, column - half, column + half + 1)


def _bonnet(canvas: Canvas, chance: Chance) -> None:
    """The camera's own car at the lower edge: void."""
    colour, high = chance.one_of(PAINTS), canvas.h * chance.between(5, 10) // 100
    middle = canvas.w * chance.between(40, 60) // 100
    canvas.ellipse(VOID, colour, 4, canvas.h + high, middle, 2 * high, canvas.w * chance.between(45, 65) // 100)


def _exposed(canvas: Canvas, chance: Chance, clumps: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """Texture, uneven light, a colour cast, a little blur and the sensor's noise."""
    h, w = canvas.h, canvas.w
    light = chance.between(190, 290) + (chance.smooth(h, w, 2, 2) * chance.between(0, 80) >> 8)
    texture = (chance.grains((h, w)) + clumps - 256) * canvas.grain >> 7
    image = (canvas.image + texture[:, :, None]) * light[:, :, None] >> 8
    image = image * np.array([chance.between(238, 274) for _ in range(3)], np.int32) >> 8
    soft = chance.between(0, 48)
    for axis in (0, 1):
        wide = np.pad(image, [(1, 1) if axis == along else (0, 0) for along in range(3)], mode="edge")
        before, after = (wide[:-2], wide[2:]) if axis == 0 else (wide[:, :-2], wide[:, 2:])
        image = (before * soft + image * (256 - 2 * soft) + after * soft) >> 8
    noise = chance.between(3, 12)
    image += (chance.grains(image.shape) * (2 * noise + 1) >> 8) - noise
    return np.clip(image, 0, 255).astype(np.uint8)
