"""Lists of classes and translations from files, tables of datasets, the two numberings, sequences."""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from segbench.data import DATASETS
from segbench.data.labels import REFUSED
from segbench.data.synthetic import Synthetic
from segbench.errors import SettingError
from segbench.metrics.confusion import confusion
from segbench.registry import Entry
from segbench.scoring.class_file import read_classes
from segbench.scoring.classes import ClassList, doubt, of_dataset, other_numbering
from segbench.scoring.translation import translated

WHOLE = """\
classes: {7: road, 8: pavement, 23: sky}
void: [0, 255]
palette: {sky: [70, 130, 180], 7: [128, 64, 128], pavement: [244, 35, 232]}
void_colour: [1, 2, 3]
sequences: "([^_/]+)_"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "classes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def known(table: np.ndarray) -> dict[int, int]:
    return {index: int(value) for index, value in enumerate(table) if value != REFUSED}


# --- datasets


def test_camvid_stores_its_classes_as_they_are() -> None:
    classes = of_dataset("camvid")
    assert len(classes) == 11 and classes.names[10] == "Bicyclist"
    assert known(classes.file_table) == known(classes.prediction_table) == {i: i for i in range(12)}
    assert classes.void_ids == (11,) and classes.void_colour == (0, 0, 0)
    assert known(classes.numbered("classes").prediction_table) == {i: i for i in range(11)}


def test_sun_stores_void_first() -> None:
    classes = of_dataset("sunrgbd")
    assert known(classes.file_table) == {0: 37, **{i: i - 1 for i in range(1, 38)}}
    assert classes.void_ids == (0,)
    indices = classes.numbered("classes")
    assert known(indices.prediction_table) == {i: i for i in range(37)} and indices.numbering == "classes"
    assert np.array_equal(indices.file_table, classes.file_table), "truth stays what it is"
    assert np.array_equal(indices.numbered("files").prediction_table, classes.file_table)
    assert classes.sequences(["a", "b"]) == ()


def test_a_dataset_without_a_table_stores_class_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known(of_dataset("synthetic").file_table) == {i: i for i in range(12)}
    # A name outside of the package, with preset options, is no class but a partial.
    entry = Entry("segbench.data.synthetic:Synthetic", "mine", "here", options={"seed": 3})
    monkeypatch.setitem(DATASETS.entries, "mine", entry)
    assert isinstance(DATASETS.resolve("mine"), partial)
    assert of_dataset("mine").names == Synthetic.classes
    with pytest.raises(SettingError, match='unknown dataset "camvd"; did you mean "camvid"'):
        of_dataset("camvd")


def test_class_lists_cross_a_process_boundary(tmp_path: Path) -> None:
    classes = read_classes(written(tmp_path, WHOLE))
    assert classes.palette is not None
    again = pickle.loads(pickle.dumps(classes))
    assert again.names == classes.names and again.palette.colours == classes.palette.colours
    assert np.array_equal(again.file_table, classes.file_table)


# --- sequences


def test_a_sequence_is_the_first_group_at_the_beginning(tmp_path: Path) -> None:
    camvid = of_dataset("camvid")
    names = ["0001TP_008550", "0001TP_008580", "Seq05VD_f00000"]
    assert camvid.sequences(names) == ("0001TP", "0001TP", "Seq05VD")
    assert camvid.sequences([*names, "frame7"]) == (), "names of one's own tell no sequences"
    classes = read_classes(written(tmp_path, WHOLE))
    assert classes.sequences(["aachen_000", "bern_1_2"]) == ("aachen", "bern")
    for name in ("x/aachen_000", "aachen"):
        with pytest.raises(SettingError, match=rf'sequences: .* finds no sequence in the name "{name}"'):
            classes.sequences(["aachen_000", name])


# --- files of classes


def test_a_whole_file(tmp_path: Path) -> None:
    classes = read_classes(written(tmp_path, WHOLE))
    assert classes.names == ("road", "pavement", "sky")
    assert known(classes.file_table) == known(classes.prediction_table) == {7: 0, 8: 1, 23: 2, 0: 3, 255: 3}
    assert classes.void_ids == (0, 255)
    assert classes.colours == ((128, 64, 128), (244, 35, 232), (70, 130, 180))
    assert classes.void_colour == (1, 2, 3)


def test_a_short_file(tmp_path: Path) -> None:
    classes = read_classes(written(tmp_path, "\ufeffclasses: [road, sky]\n"))
    assert known(classes.file_table) == {0: 0, 1: 1}
    assert classes.void_ids == () and classes.palette is None and classes.void_colour is None
    assert classes.sequences(["a"]) == ()
    listed = read_classes(written(tmp_path, "classes: [road, sky]\nvoid: 255\npalette: [[1, 1, 1], [2, 2, 2]]\n"))
    assert listed.void_ids == (255,) and listed.colours == ((1, 1, 1), (2, 2, 2)) and listed.void_colour == (0, 0, 0)
    black = read_classes(written(tmp_path, "classes: [road, sky]\npalette: [[0, 0, 0], [2, 2, 2]]\n"))
    assert black.void_colour is None


def test_254_classes_and_no_more(tmp_path: Path) -> None:
    def names(count: int) -> str:
        return "classes: [" + ", ".join(f"c{i}" for i in range(count)) + "]\nvoid: 255\n"

    classes = read_classes(written(tmp_path, names(254)))
    assert classes.file_table[253] == 253 and classes.file_table[255] == 254 and classes.file_table[254] == REFUSED
    for many in (255, 300):
        with pytest.raises(
            SettingError, match=rf"classes\.yaml:1: classes: found {many} classes; allowed: at most 254"
        ):
            read_classes(written(tmp_path, names(many)))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, r"is empty; a file of classes has at least `classes: \[NAME, \.\.\.\]`"),
        ("[road]", None, "is not a file of classes"),
        ("classes: [road\n", 2, "not valid YAML"),
        ("clases: [road]\n", 1, r'clases: found "clases"; allowed: classes, .*; did you mean "classes"\?'),
        ("void: [255]\n", None, "classes: found None; allowed: a list of names"),
        ("classes: []\n", 1, r"classes: found \[\]"),
        ("classes: road\n", 1, "classes: found 'road'"),
        ("classes:\n- road\n- on\n", 3, r'classes\[1\]: found True as a name; allowed: .*in quotes.*\("on"\)'),
        ("classes:\n- road\n- 7\n", 3, r"classes\[1\]: found 7 as a name"),
        ("classes:\n- road\n- ' '\n", 3, r"classes\[1\]: found ' ' as a name"),
        ("classes:\n- road\n- void\n", 3, r'classes\[1\]: found "void" as the name of a class.*`void:`'),
        ("classes:\n- road\n- road\n", 3, r'classes\[1\]: found "road" twice'),
        ("classes:\n  7: road\n  8: road\n", 3, r'classes\.8: found "road" twice'),
        ("classes:\n  7: road\n  7: sky\n", 3, r"classes\.7 is written twice"),
        ("classes:\n  7: road\n  3: sky\n", 3, r"classes\.3: found 3 after 7; allowed: ids upwards"),
        ("classes:\n  7: road\n  256: sky\n", 3, r"classes\.256: found 256 as an id; allowed: whole numbers 0\.\.255"),
        ("classes:\n  -1: road\n", 2, r"classes\.-1: found -1 as an id"),
        ("classes:\n  road: 7\n", 2, r"classes\.road: found 7 as a name"),
        ("classes:\n  road: sky\n", 2, r"classes\.road: found 'road' as an id"),
        ("classes: [road]\nvoid:\n- 255\n- 0\n", 4, r"void\[1\]: found 0, the id of road; allowed: ids that no class"),
        ("classes: [road]\nvoid: [300]\n", 2, r"void\[0\]: found 300 as an id"),
        ("classes: [road]\nvoid: yes\n", 2, "void: found True as an id|void.*found True as an id"),
        ("classes: [road, sky]\npalette: [[1, 2, 3]]\n", 2, r"palette: found 1 colours; allowed: 2, one \[R, G, B\]"),
        ("classes: [road]\npalette: red\n", 2, "palette: found 'red'; allowed: 1, one"),
        ("classes: [road]\npalette: [[1, 2, 256]]\n", 2, r"palette\[0\]: found \[1, 2, 256\]; allowed: \[R, G, B\]"),
        ("classes: [road]\npalette: [[1, 2]]\n", 2, r"palette\[0\]: found \[1, 2\]"),
        ("classes: [road]\npalette:\n  raod: [1, 2, 3]\n", 3, r'palette\.raod: found "raod".*did you mean "road"'),
        (
            "classes: [a, b]\npalette:\n  a: [1, 2, 3]\n  0: [1, 2, 4]\n",
            4,
            r'palette\.0: found "0"; allowed: each class once',
        ),
        (
            "classes: [a, b]\npalette: [[1, 2, 3], [1, 2, 3]]\n",
            2,
            r"palette: found \(1, 2, 3\) is the colour of both a and b",
        ),
        ("classes: [a]\npalette: [[1, 2, 3]]\nvoid_colour: [1, 2, 3]\n", 2, "the colour of both a and void"),
        ("classes: [a]\nvoid_colour: [1, 2, 3]\n", 2, "void_colour: found a colour of void alone"),
        (
            "classes: [a]\nsequences: '[^_]+'\n",
            2,
            r"sequences: found '\[\^_\]\+'; allowed: a regular expression with a group",
        ),
        ("classes: [a]\nsequences: '('\n", 2, r"sequences: found '\(' \("),
        ("classes: [a]\nsequences: 7\n", 2, "sequences: found 7"),
    ],
)
def test_mistakes_in_a_file_of_classes_name_the_line(tmp_path: Path, text: str, line: int | None, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingError, match=message) as error:
        read_classes(path)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.yaml: cannot be read as a file of classes \(No such file"):
        read_classes(tmp_path / "none.yaml")


# --- translations


def test_ids_of_a_model_become_classes(tmp_path: Path) -> None:
    classes = translated(
        of_dataset("camvid"), written(tmp_path, "0: Road\n1: Pavement\n10: Sky\n18: 10\n3: 11\n255: void\n")
    )
    assert known(classes.prediction_table) == {0: 3, 1: 4, 10: 0, 18: 10, 3: 11, 255: 11}
    assert known(classes.file_table) == {i: i for i in range(12)}, "truth stays what it is"
    assert classes.numbering.endswith("classes.yaml") and other_numbering(classes) is None


def test_target_ids_are_those_of_the_truths_files(tmp_path: Path) -> None:
    classes = translated(of_dataset("sunrgbd"), written(tmp_path, "4: 1\n5: wall\n6: 0\n7: 37\n"))
    assert known(classes.prediction_table) == {4: 0, 5: 0, 6: 37, 7: 36}


def test_names_of_a_model_stand_for_their_place(tmp_path: Path) -> None:
    text = "classes: [void, road, car]\nroad: Road\n2: Car\nvoid: void\n"
    classes = translated(of_dataset("camvid"), written(tmp_path, text))
    assert known(classes.prediction_table) == {0: 11, 1: 3, 2: 8}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "is empty; a translation has at least `ID: CLASS`"),
        ("classes: [a]\n", None, "found no class of the model; allowed: at least one"),
        ("0: Road\n1: Rode\n", 2, r"1: found 'Rode'; allowed: void, an id of .*Bicyclist; did you mean \"Road\"\?"),
        ("0: Road\n1: 12\n", 2, "1: found 12; allowed: void, an id of the truth's files"),
        ("0: Road\n1: -1\n", 2, "1: found -1"),
        ("0: Road\n1: yes\n", 2, "1: found True"),
        ("0: Road\n1: [Road]\n", 2, r"1: found \['Road'\]"),
        ("0: Road\n256: Sky\n", 2, r"256: found 256 as an id; allowed: whole numbers 0\.\.255"),
        ("0: Road\n-1: void\n", 2, "-1: found -1 as an id"),
        ("0: Road\nsky: Sky\n", 2, r'sky: found "sky"; allowed: ids 0\.\.255'),
        ("classes: [road]\nrode: Road\n", 2, r'rode: found "rode"; allowed: .* of `classes:`; did you mean "road"\?'),
        ("classes: [road]\nroad: Road\n0: Sky\n", 3, "0: found id 0 twice"),
        ("classes: road\n0: Road\n", 1, "classes: found 'road'; allowed: the names of the model's classes"),
        ("classes: [a, b, a]\n0: Road\n", 1, r'classes\[2\]: found "a" twice'),
        ("classes: [a, no]\n0: Road\n", 1, r"classes\[1\]: found False as a name"),
    ],
)
def test_mistakes_in_a_translation_name_the_line(tmp_path: Path, text: str, line: int | None, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingError, match=message) as error:
        translated(of_dataset("camvid"), path)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert "\n" not in str(error.value)


# --- two numberings


def test_the_counts_show_a_wrong_numbering() -> None:
    classes = of_dataset("sunrgbd")
    truth = np.random.RandomState(0).randint(0, 38, (40, 50)).astype(np.uint8)  # 37 is void
    wrong = np.where(truth == 37, np.uint8(5), truth)
    wrong[:4] = 3  # a network's argmax, mostly right
    shifted = classes.file_table[wrong]  # 0..36 read as ids of the files
    found = doubt(classes, confusion(truth, shifted, 37))
    assert found is not None and (found.used, found.other) == ("files", "classes")
    valid = truth < 37
    told_apart = (wrong == truth) & (wrong > 0)  # 0 was taken for void, as pixels out of range are
    assert found.agree_other == pytest.approx(told_apart[valid].mean(), abs=1e-12)
    assert found.agree_used == pytest.approx((shifted == truth)[valid].mean(), abs=1e-12)
    assert "--prediction-ids files: 0.3%" in str(found) and "with --prediction-ids classes" in str(found)
    right = classes.numbered("classes")
    assert doubt(right, confusion(truth, wrong, 37)) is None
    # The same mistake the other way round: ids 1..37 taken for indices.
    stored = np.where(wrong + 1 > 36, 37, wrong + 1).astype(np.uint8)
    found = doubt(right, confusion(truth, stored, 37))
    assert found is not None and found.other == "files"


def test_void_ids_that_share_a_column_are_no_evidence(tmp_path: Path) -> None:
    """Cityscapes' habit: training ids 0..2 in files whose ids 0..2 are void and whose classes start at 3."""
    classes = read_classes(written(tmp_path, "classes: {1: road, 3: car, 4: sky}\nvoid: [0, 2, 255]\n"))
    truth = np.array([[0, 1, 2, 2]], np.uint8)
    predicted = classes.file_table[truth]  # road -> id 0 -> void, car -> id 1 -> road, sky -> id 2 -> void
    found = doubt(classes, confusion(truth, predicted, 3))
    assert found is not None and (found.agree_used, found.agree_other) == (0, 0.25), "only car can be told apart"


def test_no_doubt_where_nothing_can_be_confused(tmp_path: Path) -> None:
    counts = np.zeros((12, 12), np.int64)
    assert doubt(of_dataset("sunrgbd"), np.zeros((38, 38), np.int64)) is None, "nothing was counted"
    counts[0, 1] = 9
    assert doubt(of_dataset("camvid"), counts) is None, "no id has two readings"
    assert other_numbering(of_dataset("camvid")) == "classes", "but 11 is an id in one of them only"
    listed = read_classes(written(tmp_path, "classes: [a, b]\n"))
    assert other_numbering(listed) is None
    assert isinstance(listed, ClassList)
