"""What `segbench models --costs` prints: the papers' sizes and work, to the integer and to 0.001 GMAC."""

from typing import Any

import pytest
from rich.console import Console

from segbench.cli.models import cost_rows, costs_table, written
from segbench.errors import SettingError
from segbench.models import MODELS
from segbench.report import render

FIXED, PLAIN = "deconvolution: fixed", "batch_norm: false"
RELEASED = "geometry: released"
# (name, options) -> parameters with 11 and 37 classes, and GMAC with 11 and 37.
REFERENCE = {
    ("segnet", ""): (29_449_355, 29_464_357, 106.712, 109.300),
    # The released file for SUN RGB-D: 38 outputs for 37 classes.
    ("segnet", "void_logit: true"): (29_449_932, 29_464_934, 106.812, 109.400),
    ("bayesian-segnet", ""): (29_449_355, 29_464_357, 106.712, 109.300),
    ("segnet-basic", ""): (1_416_064, 1_417_728, 59.189, 59.476),
    ("segnet-basic", "bias: true"): (1_416_587, 1_418_277, 59.189, 59.476),
    ("segnet-basic-encoder-addition", ""): (1_416_064, 1_417_728, 59.189, 59.476),
    ("segnet-basic-encoder-addition", "addition: convolved"): (1_416_064, 1_417_728, 59.189, 59.476),
    ("segnet-basic-single-channel-decoder", ""): (625_792, 627_456, 13.847, 14.135),
    ("bayesian-segnet-basic", ""): (1_416_587, 1_418_277, 59.189, 59.476),
    ("bilinear-interpolation", ""): (612_736, 614_400, 13.006, 13.007),
    # 64 maps classified at 360x480 and not at 23x30: 704 * (172800 - 690) more.
    ("bilinear-interpolation", "upsampled: features"): (612_736, 614_400, 13.127, 13.415),
    ("fcn-basic", ""): (645_824, 971_968, 13.490, 18.170),
    ("fcn-basic-no-addition", ""): (643_712, 964_864, 13.451, 18.036),
    ("fcn-basic-no-dim-reduction", ""): (1_661_312, 1_662_976, 28.172, 28.459),
    ("fcn-basic-no-addition-no-dim-reduction", ""): (1_661_312, 1_662_976, 28.172, 28.459),
    ("fcn32s", ""): (134_826_059, 140_044_389, 139.416, 140.418),
    ("fcn32s", FIXED): (134_826_059, 140_044_389, 139.416, 140.418),
    ("fcn32s", PLAIN): (134_801_227, 140_019_557, 139.416, 140.418),
    ("fcn16s", ""): (134_461_926, 135_879_706, 139.440, 140.614),
    ("fcn16s", FIXED): (134_461_926, 135_879_706, 139.440, 140.614),
    ("fcn16s", PLAIN): (134_437_094, 135_854_874, 139.440, 140.614),
    ("fcn8s", ""): (134_373_761, 134_859_727, 139.466, 140.775),
    ("fcn8s", FIXED): (134_373_761, 134_859_727, 139.466, 140.775),
    ("fcn8s", PLAIN): (134_348_929, 134_834_895, 139.466, 140.775),
    ("deeplab-largefov", ""): (20_507_723, 20_534_373, 82.786, 82.858),
    ("deeplab-largefov", RELEASED): (20_507_723, 20_534_373, 85.179, 85.253),
    ("deeplab-largefov", f"{RELEASED}, {PLAIN}"): (20_495_179, 20_521_829, 85.179, 85.253),
    ("deeplab-largefov-densecrf", ""): (20_507_723, 20_534_373, 82.786, 82.858),
    ("deconvnet", ""): (219_280_715, 219_282_405, 112.299, 112.587),
    ("deconvnet", "form: released"): (251_805_003, 251_806_693, 32.714, 32.797),
    ("unet", ""): (31_032_395, 31_034_085, 176.137, 176.436),
    # Zero padding needs multiples of 16 to keep its maps; the reference counts it at 368x480.
    ("unet", "padding: same"): (31_032_395, 31_034_085, 129.939, 130.233),
}
# Fixed kernels are stored and not trained: what is left, normalisation included.
TRAINED = {
    "fcn32s": (134_305_611 + 24_832, 134_412_133 + 24_832),
    "fcn16s": (134_311_254 + 24_832, 134_431_114 + 24_832),
    "fcn8s": (134_314_081 + 24_832, 134_440_623 + 24_832),
}


@pytest.fixture(scope="module", params=[11, 37])
def counted(request: pytest.FixtureRequest) -> tuple[int, list[dict[str, Any]]]:
    return request.param, list(cost_rows("360x480", request.param))


def test_sizes_and_work_are_the_references(counted: tuple[int, list[dict[str, Any]]]) -> None:
    classes, rows = counted
    shown = costs_table(rows, classes)
    cells = {(row[0], row[1]): row for row in shown.rows}
    assert set(REFERENCE) <= set(cells)
    for key, (of_11, of_37, gmac_11, gmac_37) in REFERENCE.items():
        parameters, gmac = (of_11, gmac_11) if classes == 11 else (of_37, gmac_37)
        assert cells[key][3] == f"{parameters:,}", key
        assert cells[key][5] == f"{parameters * 4e-6:.2f}", key
        assert float(cells[key][6]) == gmac, key
        trained = TRAINED[key[0]][classes == 37] if key[1] == FIXED else None
        assert cells[key][4] == (f"{trained:,}" if trained else "all"), key


def test_every_model_of_the_table_is_counted_at_the_size_that_it_is_made_for(
    counted: tuple[int, list[dict[str, Any]]],
) -> None:
    _, rows = counted
    assert {row["name"] for row in rows} == {name for name in MODELS.entries if not name.endswith(":")}
    made_for = {(row["name"], written(row["options"])): row["res"] for row in rows if row["res"] != "360x480"}
    assert made_for == {("deconvnet", "form: released"): "224x224", ("unet", "padding: same"): "368x480"}


def test_notes_name_what_is_not_counted() -> None:
    rows = [next(row for row in cost_rows("45x60", 2) if row["name"] == "segnet-basic")]
    notes = " ".join(costs_table(rows, 2).notes)
    assert "MACs leave out normalisation, activations, pooling, unpooling, resizing and sums (--json names" in notes
    assert "native_batch_norm" in rows[0]["uncounted"] and "native" not in notes
    assert "2 classes" in notes and "Trained" in notes
    broken = rows[0] | {"macs": None, "notes": ("macs not counted: why",)}
    table = costs_table([broken], 2)
    assert table.rows[0][6] == "n/a" and table.notes[-1] == "segnet-basic: macs not counted: why."


def test_no_column_is_lost_in_a_narrow_terminal() -> None:
    row: dict[str, Any] = {
        "name": "segnet-basic-single-channel-decoder",
        "options": {"addition": "convolved"},
        "res": "360x480",
    }
    row |= {"parameters": 123_456_789, "trainable_parameters": 1, "parameter_mb": 1.0, "macs": None, "uncounted": ()}
    table = costs_table([row | {"notes": ()}], 11)
    for width in (60, 80):
        console = Console(width=width)
        with console.capture() as capture:
            console.print(render.terminal(table, width))
        assert all(heading in capture.get() for heading in table.columns)
        assert "123,456,789" in capture.get()


def test_a_size_that_is_none() -> None:
    with pytest.raises(SettingError, match='--res: "360" is not a size'):
        list(cost_rows("360", 11))
