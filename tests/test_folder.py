"""Label files made elsewhere: every kind of file, everything that can be wrong with a folder, all of it at once."""

import io
import pickle
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_data import grey_png, noise, save

from segbench.data.camvid import CamVid
from segbench.errors import DataError, SettingError
from segbench.scoring.class_file import read_classes
from segbench.scoring.classes import ClassList, of_dataset
from segbench.scoring.folder import Pair, Truth, dataset_truth, label_files, pair
from segbench.scoring.maps import LabelMaps, read_pair
from segbench.scoring.translation import translated

CAMVID = of_dataset("camvid")
COLOURS = np.array([*CamVid.palette, CamVid.void_colour], np.uint8)
IDS = noise(0, 6, 8, high=12)


def read(prediction: Path, truth: Path, classes: ClassList = CAMVID, **options: Any) -> LabelMaps:
    return read_pair(Pair("x", prediction, truth), classes, **options)


def predicted(path: Path, classes: ClassList = CAMVID, shape: tuple[int, int] = (6, 8)) -> LabelMaps:
    """The maps of a prediction against a truth of one class that fits."""
    first = int(np.flatnonzero(classes.file_table == 0)[0])
    return read(path, save(np.full(shape, first, np.uint8), path.parent / "truth" / "x.png"), classes)


def only(maps: LabelMaps) -> str:
    assert len(maps.findings) == 1
    assert "\n" not in str(maps.findings[0])
    return str(maps.findings[0])


def paletted(ids: np.ndarray, colours: np.ndarray, path: Path) -> Path:
    image = Image.frombytes("P", (ids.shape[1], ids.shape[0]), ids.tobytes())
    image.putpalette(colours.ravel().tolist())
    image.save(path)
    return path


def files_of(folder: Path) -> dict[str, Path]:
    """The same labels in every kind of file."""
    voc = noise(1, 256, 3)
    voc[0] = 0
    rgb = COLOURS[IDS]
    np.save(folder / "bool.npy", IDS > 5)
    for kind in ("uint8", "int8", "uint16", "int32", "int64", ">i4"):
        np.save(folder / f"{kind.replace('>', 'big')}.npy", IDS.astype(kind))
    np.save(folder / "one.npy", IDS[None].astype(np.int64))
    np.save(folder / "fortran.npy", np.asfortranarray(IDS))
    save(IDS, folder / "grey.png")
    save(IDS, folder / "grey.tif")
    save(IDS, folder / "grey.bmp")
    save(IDS, folder / "UPPER.PNG")
    (folder / "grey16.png").write_bytes(grey_png(IDS.tolist(), 16))
    (folder / "grey4.png").write_bytes(grey_png(IDS.tolist(), 4))
    paletted(IDS, voc, folder / "palette.png")
    paletted(IDS, COLOURS, folder / "own_palette.png")
    save(rgb, folder / "rgb.png")
    save(rgb, folder / "rgb.bmp")
    save(np.dstack([rgb, noise(2, 6, 8)]), folder / "rgba.png")
    return {path.name: path for path in folder.iterdir()}


# --- kinds of files


def test_every_kind_of_file_gives_the_same_map(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    assert len(files) == 19 + 1
    for name, path in files.items():
        maps = predicted(path)
        assert maps.findings == () and maps.can_be_scored, name
        assert maps.prediction is not None and maps.prediction.dtype == np.uint8
        assert maps.prediction.tolist() == (IDS > 5 if name == "bool.npy" else IDS).tolist(), name
        assert maps.prediction.flags.writeable and maps.prediction.flags.c_contiguous, name


@pytest.mark.parametrize(("bits", "highest"), [(1, 1), (2, 3), (4, 11)])
def test_grey_of_few_bits_is_not_stretched(tmp_path: Path, bits: int, highest: int) -> None:
    ids = np.minimum(IDS, highest)
    (tmp_path / "x.png").write_bytes(grey_png(ids.tolist(), bits))
    maps = predicted(tmp_path / "x.png")
    assert maps.prediction is not None and maps.prediction.tolist() == ids.tolist()


def test_truth_is_read_through_its_table_in_any_kind_of_file(tmp_path: Path) -> None:
    sun = of_dataset("sunrgbd")
    ids = noise(3, 6, 8, high=38)
    colours = np.array([sun.void_colour, *sun.colours], np.uint8)  # type: ignore[misc]
    expected = np.where(ids == 0, 37, ids.astype(int) - 1).tolist()
    np.save(tmp_path / "wide.npy", ids.astype(np.int64))
    for path in (save(ids, tmp_path / "ids.png"), save(colours[ids], tmp_path / "rgb.png"), tmp_path / "wide.npy"):
        maps = read(save(np.maximum(ids, 1), tmp_path / "p" / path.with_suffix(".png").name), path, sun)
        assert maps.findings == ()
        assert maps.truth is not None and maps.truth.tolist() == expected
        assert maps.prediction is not None and maps.prediction.tolist() == (np.maximum(ids, 1) - 1).tolist()


def test_a_translation_is_applied_to_the_ids_of_predictions_alone(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("0: Road\n1: Sky\n200: void\n7: Road\n")
    classes = translated(CAMVID, tmp_path / "t.yaml")
    path = save(np.array([[0, 1], [200, 7]], np.uint8), tmp_path / "x.png")
    maps = read(path, save(np.array([[0, 1], [11, 7]], np.uint8), tmp_path / "truth.png"), classes)
    assert maps.findings == () and maps.prediction is not None and maps.truth is not None
    assert maps.prediction.tolist() == [[3, 0], [11, 3]]
    assert maps.truth.tolist() == [[0, 1], [11, 7]]
    unmentioned = predicted(save(np.array([[0, 2]], np.uint8), tmp_path / "y.png"), classes, (1, 2))
    assert "label values 2 in 1 pixels; allowed: 0..1, 7, 200;" in only(unmentioned)
    in_colour = predicted(save(COLOURS[IDS], tmp_path / "rgb.png"), classes)
    assert in_colour.findings == () and in_colour.prediction is not None
    assert in_colour.prediction.tolist() == IDS.tolist(), "colours are those of the classes already"


# --- pixels that are no class


def test_ids_out_of_range_are_found_and_become_void(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[0] = [200, 12, 12, 255, 0, 1, 2, 3]
    maps = predicted(save(ids, tmp_path / "x.png"))
    message = only(maps)
    assert message.startswith(f"{tmp_path / 'x.png'}: label values 12, 200, 255 in 4 pixels; allowed: 0..11; ")
    assert maps.can_be_scored and maps.prediction is not None
    assert maps.prediction[0].tolist() == [11, 11, 11, 11, 0, 1, 2, 3]
    assert maps.prediction[1:].tolist() == ids[1:].tolist()


@pytest.mark.parametrize(("value", "kind"), [(-1, "int64"), (-1, "int8"), (256, "uint16"), (2**40, "int64")])
def test_ids_beyond_a_byte_do_not_wrap(tmp_path: Path, value: int, kind: str) -> None:
    wide = IDS.astype(kind)
    wide[2, 3] = value
    np.save(tmp_path / "x.npy", wide)
    maps = predicted(tmp_path / "x.npy")
    assert f"label values {value} in 1 pixels; allowed: 0..11" in only(maps)
    assert maps.prediction is not None and maps.prediction[2, 3] == 11
    assert (maps.prediction != IDS).sum() == (IDS[2, 3] != 11)


def test_many_values_are_counted_not_listed(tmp_path: Path) -> None:
    maps = predicted(save(np.arange(48, dtype=np.uint8).reshape(6, 8), tmp_path / "x.png"))
    assert "label values 12, 13, 14, 15, 16, 17, 18, 19 and 28 more in 36 pixels" in only(maps)


def test_truth_out_of_range_excludes_the_image(tmp_path: Path) -> None:
    prediction = save(IDS, tmp_path / "p.png")
    maps = read(prediction, save(IDS + 1, tmp_path / "t.png"))
    assert "t.png: label values 12 in " in only(maps)
    assert maps.truth is None and not maps.can_be_scored


def test_both_files_are_judged(tmp_path: Path) -> None:
    maps = read(save(IDS + 100, tmp_path / "p.png"), save(IDS + 200, tmp_path / "t.png"))
    assert [Path(finding.file).name for finding in maps.findings] == ["t.png", "p.png"]
    maps = read(tmp_path / "no.png", tmp_path / "neither.png")
    assert [str(f).split(": ")[1].split(";")[0] for f in maps.findings] == ["truth is missing", "prediction is missing"]
    assert maps.truth is None and maps.prediction is None


# --- colours


def test_unknown_colours_come_with_the_nearest_that_is_known(tmp_path: Path) -> None:
    rgb = COLOURS[IDS]
    rgb[0, :3] = (127, 64, 130)
    rgb[0, 3] = (0, 1, 0)
    maps = predicted(save(rgb, tmp_path / "x.png"))
    message = only(maps)
    assert "(127, 64, 130) in 3 pixels (nearest: Road (128, 64, 128))" in message
    assert "(0, 1, 0) in 1 pixels (nearest: void (0, 0, 0)), 4 pixels in all" in message
    assert "allowed: the 12 colours of the palette, exactly" in message and "smoothing" in message
    assert maps.can_be_scored and maps.prediction is not None
    assert maps.prediction[0].tolist() == [11, 11, 11, 11, *IDS[0, 4:]]
    assert maps.prediction[1:].tolist() == IDS[1:].tolist()


def test_of_many_unknown_colours_the_commonest_are_listed(tmp_path: Path) -> None:
    rgb = np.zeros((6, 8, 3), np.uint8) + 3
    rgb[0] = np.arange(8)[:, None] + [20, 21, 23]
    rgb[1, :4] = (9, 8, 7)
    message = only(predicted(save(rgb, tmp_path / "x.png")))
    assert message.index("(3, 3, 3) in 36 pixels") < message.index("(9, 8, 7) in 4 pixels")
    assert message.count("nearest") == 4 and "and 6 more, 48 pixels in all" in message


def test_usual_mistakes_with_colours_are_named(tmp_path: Path) -> None:
    assert "written as BGR" in only(predicted(save(COLOURS[IDS][:, :, ::-1], tmp_path / "bgr.png")))
    ids = np.dstack([IDS] * 3)
    assert "one channel of grey, not three" in only(predicted(save(ids, tmp_path / "three.png")))


def test_colours_without_a_palette_and_of_16_bits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("classes: [a, b]\n")
    classes = read_classes(tmp_path / "c.yaml")
    maps = predicted(save(COLOURS[IDS], tmp_path / "x.png"), classes)
    assert "the classes have no colours; allowed: one id a pixel; write class ids, or add `palette:`" in only(maps)
    assert maps.prediction is None
    (tmp_path / "deep.png").write_bytes(grey_png([[0, 300, 9]], 16, colour_type=2))
    assert "stored as PNG of mode RGB, 16 bits a channel" in only(predicted(tmp_path / "deep.png"))


def test_a_palette_that_was_renumbered_is_found(tmp_path: Path) -> None:
    """What tools make that keep only the colours in use: the right colours, at indices that are no ids."""
    rgb = COLOURS[np.array([[8, 8, 3], [3, 0, 11]])]
    optimised = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    optimised.save(tmp_path / "x.png")
    maps = predicted(tmp_path / "x.png", shape=(2, 3))
    message = only(maps)
    stored = np.array(optimised)
    assert maps.prediction is None and not maps.can_be_scored
    assert f"{stored[0, 0]} is coloured as Car and read as {CamVid.classes[stored[0, 0]]}" in message
    assert "save it as RGB" in message


@pytest.mark.parametrize("case", ["unused", "unknown colour", "black", "own"])
def test_other_palettes_are_decoration(tmp_path: Path, case: str) -> None:
    colours, ids = COLOURS.copy(), IDS % 11
    if case == "unused":  # two colours exchanged, at indices that the file does not hold
        colours[[2, 3]] = colours[[3, 2]]
        ids = np.where((ids == 2) | (ids == 3), np.uint8(0), ids)
    elif case == "unknown colour":
        colours[[2, 3, 4]] = [colours[3], colours[2], (1, 2, 3)]
    elif case == "black":
        colours = np.zeros((256, 3), np.uint8)
    maps = predicted(paletted(ids, colours, tmp_path / "x.png"))
    assert maps.findings == () and maps.prediction is not None
    assert maps.prediction.tolist() == ids.tolist()


def test_a_renumbered_palette_of_ids_without_a_class(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("classes: {7: a, 9: b}\npalette: [[1, 2, 3], [4, 5, 6]]\n")
    colours = np.array([(1, 2, 3), (4, 5, 6)], np.uint8)
    maps = predicted(paletted(IDS % 2, colours, tmp_path / "x.png"), read_classes(tmp_path / "c.yaml"))
    expected = "0 is coloured as a and read as no class, 1 is coloured as b and read as no class"
    assert expected in only(maps)
    filled = np.concatenate([colours, np.zeros((254, 3), np.uint8)])
    (tmp_path / "c.yaml").write_text((tmp_path / "c.yaml").read_text() + "void_colour: [9, 9, 9]\n")
    maps = predicted(paletted(IDS % 2, filled, tmp_path / "y.png"), read_classes(tmp_path / "c.yaml"))
    assert expected in only(maps), "a palette filled up with black, which is no colour of these classes"


# --- arrays


def array_file(shape: str, descr: str = "'|u1'", data: int = 48) -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(data)


def archive(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array_file("(6, 8)")[:-1], "prediction cannot be read"),
        (array_file("(6, 8)")[:40], "prediction cannot be read"),
        (b"", "prediction cannot be read"),
        (b"\x93NUMPY\x09\x00" + bytes(200), "prediction cannot be read"),
        (pickle.dumps({"a": 1}), r"prediction cannot be read \(.*pickle.*allowed: a whole \.npy file without pickled"),
        (array_file("(6, 8)", "'|O'"), "prediction cannot be read"),
        (array_file("(10**9, 10**9)"), "prediction cannot be read"),
        (array_file("(100000000, 100000000)"), "prediction cannot be read"),
        (array_file("(-6, 8)"), "prediction cannot be read"),
        (array_file("(6, 8)", "__import__('os')"), "prediction cannot be read"),
        (archive(a=IDS), "prediction is an archive of arrays; allowed: one array"),
        (
            array_file("(48,)"),
            r"prediction is an array \[48\] of uint8; allowed: whole numbers \[h, w\] or \[1, h, w\]",
        ),
        (array_file("(2, 3, 8)"), r"prediction is an array \[2, 3, 8\] of uint8"),
        (
            array_file("(6, 8)", "'<f4'", 192),
            r"an array \[6, 8\] of float32; .*; save the ids of the classes, the argmax",
        ),
        (array_file("(6, 8)", "[('a', '|u1')]"), r"an array \[6, 8\] of \[\('a', 'u1'\)\]"),
        (array_file("(0, 8)"), r"an array \[0, 8\] of uint8|cannot be read"),
        (array_file("()", data=1), r"an array \[\] of uint8"),
    ],
)
def test_arrays_that_are_no_label_maps_are_findings(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    maps = predicted(tmp_path / "x.npy")
    assert maps.prediction is None
    found = only(maps)
    assert found.startswith(str(tmp_path / "x.npy"))
    assert re.search(message, found), found


def test_no_memory_is_taken_for_what_a_header_claims(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(array_file("(20000, 20000)"))
    tracemalloc.start()
    try:
        assert "cannot be read" in only(predicted(tmp_path / "x.npy"))
        assert tracemalloc.get_traced_memory()[1] < 40e6, "the array would take 400 MB"
    finally:
        tracemalloc.stop()


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "x.npy", np.array([[Trap()]], object), allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("x.npy", "y.npy"):
        assert "cannot be read" in only(predicted(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["x.jpg", "x.webp", "x.pgm"])
def test_lossy_files_and_broken_ones_are_findings(tmp_path: Path, name: str) -> None:
    assert "prediction stored as " in only(predicted(save(IDS, tmp_path / name)))
    whole = save(noise(0, 40, 50), tmp_path / "y.png").read_bytes()
    (tmp_path / "y.png").write_bytes(whole[: len(whole) // 2])
    assert "prediction cannot be read" in only(predicted(tmp_path / "y.png"))


# --- sizes


def test_another_size_is_a_finding_unless_resized(tmp_path: Path) -> None:
    prediction = save(np.array([[1, 2], [3, 4]], np.uint8), tmp_path / "p.png")
    truth = save(np.zeros((4, 6), np.uint8), tmp_path / "t.png")
    maps = read(prediction, truth)
    assert "p.png: prediction of 2x2 where truth has 4x6; allowed: the size of the truth; " in only(maps)
    assert "--resize nearest" in only(maps) and maps.prediction is None and maps.truth is not None
    maps = read(prediction, truth, resize="nearest")
    assert maps.findings == () and maps.prediction is not None
    assert maps.prediction.tolist() == [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 4]] * 2


def test_truth_is_brought_to_the_size_that_its_dataset_asks_for(tmp_path: Path) -> None:
    prediction = save(np.zeros((2, 2), np.uint8), tmp_path / "p.png")
    truth = save(np.array([[1, 1, 2, 2]] * 4, np.uint8), tmp_path / "t.png")
    maps = read_pair(Pair("x", prediction, truth, (2, 2)), CAMVID)
    assert maps.findings == () and maps.truth is not None and maps.truth.tolist() == [[1, 2], [1, 2]]
    stored = read_pair(Pair("x", save(np.zeros((4, 4), np.uint8), prediction), truth, (2, 2)), CAMVID)
    assert "prediction of 4x4 where truth has 2x2" in only(stored)


# --- two numberings


def test_ids_that_fit_the_other_numbering_alone_say_so(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("classes: {7: road, 8: pavement, 23: sky}\nvoid: 255\n")
    classes = read_classes(tmp_path / "c.yaml")
    indices = save(np.array([[0, 1, 2]], np.uint8), tmp_path / "indices.png")
    ids = save(np.array([[7, 8, 255]], np.uint8), tmp_path / "ids.png")
    neither = save(np.array([[0, 8, 99]], np.uint8), tmp_path / "neither.png")
    shape = (1, 3)
    assert "every id here fits --prediction-ids classes" in only(predicted(indices, classes, shape))
    assert "every id here fits --prediction-ids files" in only(predicted(ids, classes.numbered("classes"), shape))
    for numbered in (classes, classes.numbered("classes")):
        assert "fits" not in only(predicted(neither, numbered, shape))
    assert predicted(ids, classes, shape).findings == ()
    right = predicted(indices, classes.numbered("classes"), shape)
    assert right.findings == () and right.prediction is not None and right.prediction.tolist() == [[0, 1, 2]]
    # Truth never follows the numbering of predictions.
    assert "fits" not in only(read(ids, indices, classes))


# --- pairing


def put(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_files_are_paired_by_stem_in_a_stable_order(tmp_path: Path) -> None:
    predictions = put(tmp_path / "p", "b.png", "a.npy", "c.d.png", ".hidden.png", ".cache/a.png", "log.txt", "README")
    truth = put(tmp_path / "t", "c.d.tif", "a.png", "b.PNG", "b.jpg", "._a.png")
    pairing = pair(predictions, truth)
    assert pairing.findings == []
    assert pairing.pairs == [
        Pair("a", predictions / "a.npy", truth / "a.png"),
        Pair("b", predictions / "b.png", truth / "b.PNG"),
        Pair("c.d", predictions / "c.d.png", truth / "c.d.tif"),
    ]
    assert pickle.loads(pickle.dumps(pairing)) == pairing


def test_everything_is_listed_at_once(tmp_path: Path) -> None:
    predictions = put(tmp_path / "p", "a.png", "b.png", "b.npy", "x.png", "y/x.npy", "e.jpg", "d.png")
    truth = put(tmp_path / "t", *(f"{name}.png" for name in "abcdef"), "d.tif", "s/g.png")
    pairing = pair(predictions, truth)
    assert [p.name for p in pairing.pairs] == ["a", "e"]
    messages = [str(finding).replace(str(tmp_path), "") for finding in pairing.findings]
    assert [message.split("; ")[0] for message in messages] == [
        '/p/b.npy: another prediction has the name "b": /p/b.png',
        '/t/d.png: another truth has the name "d": /t/d.tif',
        "/p/c: prediction is missing for the truth /t/c.png",
        "/p/f: prediction is missing for the truth /t/f.png",
        "/p/s/g: prediction is missing for the truth /t/s/g.png",
        "/p/x.png: no truth of this name in /t",
        "/p/y/x.npy: no truth of this name in /t",
    ]
    assert "--allow-missing" in messages[2]


def test_subfolders_count_only_where_both_have_them(tmp_path: Path) -> None:
    nested = put(tmp_path / "n", "bern/a.png", "aachen/a.png", "bern/b.png")
    other = put(tmp_path / "o", "aachen/a.png", "bern/a.png", "bern/b.png")
    assert [p.name for p in pair(nested, other).pairs] == ["aachen/a", "bern/a", "bern/b"]
    heap = put(tmp_path / "h", "a.png", "b.png")
    pairing = pair(heap, nested)
    assert [p.name for p in pairing.pairs] == ["b"], "two truths of one name cannot be told apart"
    assert [f.found.split(":")[0] for f in pairing.findings] == ['another truth has the name "a"']
    pairing = pair(nested, heap)
    assert [p.name for p in pairing.pairs] == ["b"]
    assert [f.found.split(":")[0] for f in pairing.findings] == ['another prediction has the name "a"']


def test_suffixes_are_cut_off_and_files_without_them_left_out(tmp_path: Path) -> None:
    truth = put(tmp_path / "t", *(f"bern/1{end}.png" for end in ("_labelIds", "_color", "_instanceIds")))
    predictions = put(tmp_path / "p", "1_pred.png", "1_scores.npy")
    pairing = pair(predictions, truth, "_pred", "_labelIds")
    assert pairing == ([Pair("1", predictions / "1_pred.png", truth / "bern/1_labelIds.png")], [], 1)
    with pytest.raises(
        DataError, match=r'p: no label files whose names end in "_prd", only \.npy, \.png; allowed: \.png'
    ):
        pair(predictions, truth, "_prd")


def test_folders_that_share_no_name_say_how_to_join_them(tmp_path: Path) -> None:
    pairing = pair(put(tmp_path / "p", "a_pred.png"), put(tmp_path / "t", "a.png"))
    assert pairing.pairs == [] and len(pairing.findings) == 3
    assert 'found "a_pred" where truth has "a"; ' in str(pairing.findings[0])
    assert "--prediction-suffix" in str(pairing.findings[0])


def test_folders_without_label_files_are_errors(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, message in [
        (tmp_path / "none", r"none: found nothing; allowed: a folder of label files"),
        (put(tmp_path, "file") / "file", r"file: found a file; allowed: a folder"),
        (empty, r"empty: no label files; allowed: \.png"),
        (put(tmp_path / "texts", "a.txt", "b.json"), r"texts: no label files, only \.json, \.txt; allowed"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            label_files(path)
        assert "\n" not in str(error.value)


# --- truth of a dataset


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Three listed test images, in the order of the list, and one that is not listed."""
    folder = tmp_path / "data" / "CamVid"
    names = ["s2_1", "s1_2", "s1_1"]
    for name in [*names, "other"]:
        save(IDS, folder / "testannot" / f"{name}.png")
        save(noise(1, 6, 8, 3), folder / "test" / f"{name}.png")
    (folder / "test.txt").write_text("".join(f"test/{n}.png testannot/{n}.png\n" for n in names))
    return tmp_path / "data"


def test_a_datasets_list_says_which_images_and_in_which_order(camvid: Path, tmp_path: Path) -> None:
    predictions = put(tmp_path / "p", "run/s1_1.png", "run/s2_1.png", "run/s1_2.png", "run/other.png")
    for root in (camvid, camvid / "CamVid"):
        images = dataset_truth("camvid", root, "test")
        assert images is not None
        pairing = pair(predictions, images)
        assert [p.name for p in pairing.pairs] == ["s2_1", "s1_2", "s1_1"]
        assert all(p.size is None for p in pairing.pairs)
        assert [str(f).split("; ")[0] for f in pairing.findings] == [
            f"{predictions / 'run/other.png'}: no truth of this name in the split"
        ]


def test_a_listed_truth_that_is_not_there_is_found_on_reading(camvid: Path, tmp_path: Path) -> None:
    (camvid / "CamVid/testannot/s1_2.png").unlink()
    for name in ("s2_1", "s1_2", "s1_1"):
        save(IDS, tmp_path / "p" / f"{name}.png")
    images = dataset_truth("camvid", camvid, "test")
    assert images is not None
    pairs = pair(tmp_path / "p", images).pairs
    found = [read_pair(each, CAMVID).findings for each in pairs]
    assert [len(f) for f in found] == [0, 1, 0]
    assert "s1_2.png: truth is missing" in str(found[1][0])


def test_other_folders_are_no_layout(camvid: Path) -> None:
    assert dataset_truth("camvid", camvid / "CamVid/testannot", "test") is None
    assert dataset_truth("synthetic", camvid, "test") is None
    with pytest.raises(SettingError, match='unknown split "tset"'):
        dataset_truth("camvid", camvid, "tset")
    (camvid / "CamVid/test.txt").write_text("one\n")
    with pytest.raises(DataError, match=r"test\.txt:1: found"):
        dataset_truth("camvid", camvid, "test")


def test_sun_is_paired_by_either_name_and_scored_at_one_size(tmp_path: Path) -> None:
    for number, shape in ((1, (8, 10)), (2, (9, 12))):
        save(noise(number, *shape, 3), tmp_path / f"SUNRGBD-test_images/img-{number:06d}.jpg")
        save(np.full(shape, number, np.uint8), tmp_path / f"sunrgbd_train_test_labels/img-{number:06d}.png")
    images = dataset_truth("sunrgbd", tmp_path, "test")
    assert images is not None and [i.name for i in images] == ["test-000001", "test-000002"]
    label = np.full((360, 480), 2, np.uint8)
    predictions = save(label, tmp_path / "p/img-000001.png").parent
    save(label, predictions / "test-000002.png")
    pairing = pair(predictions, images)
    assert pairing.findings == [] and {p.size for p in pairing.pairs} == {(360, 480)}
    for number, each in enumerate(pairing.pairs):
        maps = read_pair(each, of_dataset("sunrgbd"))
        assert maps.findings == () and maps.truth is not None and maps.prediction is not None
        assert maps.truth.shape == maps.prediction.shape == (360, 480)
        assert (maps.truth == number).all() and (maps.prediction == 1).all()
    flat = pair(predictions, [Truth("img-000001", images[0].path, "img-000001")])
    assert len(flat.pairs) == 1 and flat.pairs[0].size is None


def test_real_camvid_pairs_with_itself_in_two_sequences(camvid_root: Path) -> None:
    images = dataset_truth("camvid", camvid_root, "test")
    assert images is not None and len(images) == 233
    sequences = CAMVID.sequences([image.name for image in images])
    assert {name: sequences.count(name) for name in set(sequences)} == {"0001TP": 62, "Seq05VD": 171}
    folder = images[0].path.parent
    pairing = pair(folder, images)
    assert pairing.findings == [] and len(pairing.pairs) == 233
    assert {p.name for p in pair(folder, folder).pairs} == {p.name for p in pairing.pairs}
    maps = read_pair(pairing.pairs[7], CAMVID)
    expected = np.array(Image.open(pairing.pairs[7].truth))
    assert maps.findings == () and maps.truth is not None and maps.prediction is not None
    assert np.array_equal(maps.truth, expected) and np.array_equal(maps.prediction, expected)
