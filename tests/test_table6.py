"""Table 6: what the paper prints, what was measured, and which ratios may be taken."""

from typing import Any

import pytest

from segbench.profiling.usage import Samples, Usage
from segbench.published import published
from segbench.report.costs import cost_words, total
from segbench.report.table6 import Measured, table6


def usage(forward: float, backward: float | None = 2.0, **changes: Any) -> Usage:
    given: dict[str, Any] = {
        "device": "card",
        "res": (360, 480),
        "protocol": "steady",
        "time_batch": 1,
        "train_memory_batch": 4,
        "infer_memory_batch": 1,
        "threads": 2,
        "forward_ms": Samples((1.0,)),
        "train_forward_ms": Samples((forward, forward, 9 * forward)),
        "backward_ms": Samples((backward,)) if backward else None,
        "memory_mib": {"train_reserved": 100.0 * forward, "infer_reserved": None},
        "parameters": 10,
        "trainable_parameters": 10,
        "parameter_mb": 117.8,
        "macs": None,
    }
    return Usage(**given | changes)


def rows(*measured: Measured) -> list[dict[str, str]]:
    table = table6(measured)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_the_papers_numbers() -> None:
    table = published("table6")
    assert [row.label for row in table.rows] == ["SegNet", "DeepLab-LargeFOV", "FCN (learnt deconv)", "DeconvNet"]
    assert dict(table.rows[1].values) == {
        "forward_ms": 110.06,
        "backward_ms": 160.73,
        "train_mib": 5618,
        "infer_mib": 1993,
        "parameter_mb": 83,
    }
    assert sum(value or 0 for row in table.rows for value in row.values.values()) == pytest.approx(43286)


def test_a_measured_row_stands_below_the_published_one_that_it_means() -> None:
    found = rows(
        Measured("mine", "fcn8s", {"deconvolution": "learnt"}, usage(3.0)),
        Measured("fixed", "fcn8s", {"deconvolution": "fixed"}, usage(5.0)),
        Measured("SegNet", "segnet", {}, usage(6.0, backward=4.0)),
    )
    assert [(row["Model"], row["Source"]) for row in found] == [
        ("SegNet", "published"),
        ("SegNet", "measured"),
        ("DeepLab-LargeFOV", "published"),
        ("FCN (learnt deconv)", "published"),
        ("mine", "measured"),
        ("DeconvNet", "published"),
        ("fixed", "measured"),
    ]
    mine = found[4]
    assert (mine["Fwd ms"], mine["Fwd /SegNet"], mine["Bwd /SegNet"]) == ("3.0~", "0.50", "0.50")
    assert (mine["Train MiB"], mine["Train /SegNet"], mine["Infer MiB"], mine["Infer /SegNet"]) == (
        "300",
        "0.50",
        "n/a",
        "n/a",
    )
    assert found[0]["Fwd /SegNet"] == "1.00" and found[2]["Fwd /SegNet"] == "0.26"  # 110.06 / 422.50
    assert mine["Size MB"] == "117.8"


def test_ratios_are_taken_under_the_same_conditions_alone() -> None:
    table = table6(
        [
            Measured("SegNet", "segnet", {}, usage(6.0)),
            Measured("fast", "unet", {}, usage(3.0, precision="bf16")),
            Measured("SegNet (bf16)", "segnet", {}, usage(2.0, precision="bf16")),
            Measured("other card", "unet", {}, usage(3.0, device="other")),
        ]
    )
    found = {row[0]: row[3] for row in table.rows}
    assert found["fast"] == "1.50" and found["other card"] == "n/a"
    assert any("SegNet was not measured under the same conditions" in note for note in table.notes)


def on(**libraries: str) -> dict[str, Any]:
    return {
        **{"device": "card", "threads": 2, "segbench": "0.1", "commit": "abc", "date": "2026-01-02T03:04:05Z"},
        "libraries": {"torch": "2.11.0", **libraries},
    }


@pytest.mark.parametrize(
    "other",
    [
        Measured("x", "unet", {}, usage(3.0), 19, on()),
        Measured("x", "unet", {}, usage(3.0), 11, on(torch="2.14.0")),
        Measured("x", "unet", {}, usage(3.0), 11, on(onnxruntime="1.0")),
        Measured("x", "unet", {}, usage(3.0, device_state={"after": {"driver": "580"}}), 11, on()),
    ],
    ids=["classes", "torch", "onnxruntime", "driver"],
)
def test_classes_libraries_and_driver_are_conditions(other: Measured) -> None:
    base = Measured("SegNet", "segnet", {}, usage(6.0), 11, on())
    assert rows(base, Measured("x", "unet", {}, usage(3.0), 11, on()))[-1]["Fwd /SegNet"] == "0.50"
    assert rows(base, other)[-1]["Fwd /SegNet"] == "n/a"


def test_notes_say_once_with_what_and_when_it_was_timed() -> None:
    base = Measured("SegNet", "segnet", {}, usage(6.0), 11, on())
    line = "Timed on: card, 2 CPU threads, torch 2.11.0, segbench 0.1 (abc), 2026-01-02."
    assert table6([base, base._replace(label="again")]).notes.count(line) == 1


def test_what_was_not_measured_is_not_zero() -> None:
    base = Measured("SegNet", "segnet", {}, usage(6.0))
    row = rows(base, Measured("unet", "unet", {}, usage(3.0, backward=None)))[-1]
    assert (row["Fwd /SegNet"], row["Bwd ms"], row["Bwd /SegNet"]) == ("0.50", "n/a", "n/a")


def test_only_the_papers_segnet_is_what_others_are_compared_with() -> None:
    narrow = Measured("narrow", "segnet", {"width": 0.125}, usage(1.0))
    found = rows(narrow, Measured("fcn", "fcn8s", {}, usage(3.0)), Measured("SegNet", "segnet", {}, usage(6.0)))
    by_name = {row["Model"]: row for row in found if row["Source"] == "measured"}
    assert by_name["fcn"]["Fwd /SegNet"] == "0.50" and by_name["SegNet"]["Fwd /SegNet"] == "1.00"
    names = [row["Model"] for row in found]
    assert names.index("fcn") == names.index("FCN (learnt deconv)") + 1 and names[-1] == "narrow"


def test_what_failed_has_a_row_and_its_reason() -> None:
    table = table6([], {"U-Net (tf32)": "a CPU has none"})
    assert table.rows[-1][:3] == ["U-Net (tf32)", "failed", "n/a"]
    assert table.notes[-1] == "U-Net (tf32): failed: a CPU has none"


def test_what_a_variant_changes_stands_beside_its_times() -> None:
    base = Measured("SegNet", "segnet", {}, usage(6.0))
    told = {"changed_pixels": 0.0125, "largest_logit_error": 0.034, "largest_logit": 2.0}
    half = Measured("SegNet (bf16)", "segnet", {}, usage(3.0, precision="bf16", deviation=told))
    table = table6([base, half], {"U-Net": "a CPU has none"})
    found = {(row[0], row[1]): row[-2:] for row in table.rows}
    assert table.columns[-2:] == ["Changed %", "Logit error"]
    assert found["SegNet (bf16)", "measured"] == ["1.250", "0.034"]
    assert found["SegNet", "measured"] == ["0 (reference)", "0 (reference)"]
    assert found["SegNet", "published"] == found["U-Net", "failed"] == ["n/a", "n/a"]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert "Changed %" not in table6([base]).columns


def test_one_kind_of_memory_is_compared() -> None:
    mib = {"train_nvml_process": None, "train_nvml_device": 9.0, "infer_nvml_process": 3.0, "infer_nvml_device": 4.0}
    given = usage(1.0, memory_mib=mib)
    assert (total(given, "train"), total(given, "infer")) == (9.0, 4.0)
    assert "what the device's memory rose by (NVML), training" in cost_words([given])
    assert total(usage(1.0, memory_mib={**mib, "train_nvml_device": None}), "infer") == 3.0


def test_caffe_time_prints_the_mean() -> None:
    (row,) = [
        r for r in rows(Measured("u", "unet", {}, usage(3.0, protocol="caffe-time"))) if r["Source"] == "measured"
    ]
    assert row["Fwd ms"] == "11.0"
