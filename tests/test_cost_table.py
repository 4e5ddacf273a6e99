"""What `segbench profile` prints and writes, of usages made by hand."""

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from segbench.profiling.usage import Samples, Usage
from segbench.report.cost_files import Profiled, as_csv, as_json
from segbench.report.costs import cost_table

USAGE = Usage(
    device="card",
    res=(24, 32),
    protocol="steady",
    time_batch=4,
    train_memory_batch=4,
    infer_memory_batch=1,
    threads=2,
    forward_ms=Samples((2.0, 4.0, 3.0, 9.0, 5.0), (50.0,), stable=False, throttled=(True, False, False, False, True)),
    train_forward_ms=Samples((7.0, 8.0, 9.0), stable=True),
    backward_ms=None,
    memory_mib={"train_peak_rss": None, "infer_peak_rss": 12.5, "infer_weights": 3.0},
    parameters=1_500_000,
    trainable_parameters=1_400_000,
    parameter_mb=6.0,
    macs=2_000_000_000,
    notes=("training at batch 4 not weighed",),
    device_state={"before": {"power_w": 1.0}, "after": {"driver": "1.2", "power_w": None, "throttle": []}},
    energy_mj=250.0,
)


def row(profiled: Profiled) -> Any:
    (found,) = json.loads(as_json([profiled]))
    return found


def made(usage: Usage | None, **changes: Any) -> Profiled:
    asked, here = {"res": "24x32", "precision": "fp32", "memory": True}, {"libraries": {"torch": "1"}}
    return Profiled("net", "unet", {"width": 0.5}, 11, asked, here, usage, **changes)


def test_medians_stand_in_the_table_and_doubts_below_it() -> None:
    table = cost_table({"net": USAGE}, {"gone": "out of memory"})
    found = dict(zip(table.columns, table.rows[0], strict=True))
    assert (found["Fwd ms"], found["Bwd ms"], found["Infer ms"]) == ("8.0", "n/a", "4.0~")
    assert any(note.startswith("~: ") for note in table.notes)
    assert found["Infer ms 5-95 %"] == "2.2-8.2"  # ranks 0.2 and 3.8 of 2 3 4 5 9
    assert found["Images/s"] == "1000.0"  # four images in 4 ms
    assert (found["Train MiB"], found["Infer MiB"]) == ("n/a", "12")
    assert (found["mJ/image"], found["Params M"], found["GMAC"], found["Size MB"]) == (
        "250.0",
        "1.500",
        "2.000",
        "6.00",
    )
    assert table.rows[1] == ["gone", *["n/a"] * (len(table.columns) - 1)]
    assert "training at batch 4 not weighed" in table.notes and "gone: failed: out of memory" in table.notes
    assert any("median of 3 to 5 passes at batch 4" in note for note in table.notes)
    assert "Machine: card, 2 threads, driver 1.2." in table.notes


def test_a_variant_says_how_many_pixels_it_changes() -> None:
    changed = {"changed_pixels": 0.0125, "largest_logit_error": 0.5}
    half = replace(USAGE, precision="bf16", channels_last=True, deviation=changed, notes=("only here",))
    table = cost_table({"plain": USAGE, "half": half})
    assert [found[table.columns.index("Changed %")] for found in table.rows] == ["0 (reference)", "1.250"]
    assert any("bf16, channels-last" in note for note in table.notes)
    assert any("fp32 or bf16, channels-last" in note for note in table.notes)
    assert "half: only here" in table.notes and "plain: training at batch 4 not weighed" in table.notes
    assert "Changed %" not in cost_table({"plain": USAGE}).columns


def test_a_row_of_json_holds_every_sample_and_what_was_made_of_them() -> None:
    found = row(made(USAGE))
    assert found["model"] == "unet" and found["res"] == "24x32" and found["options"] == {"width": 0.5}
    assert found["forward_ms"] == {
        "median": 4.0,
        "mean": 4.6,
        "p5": pytest.approx(2.2),
        "p95": pytest.approx(8.2),
        "interval": None,  # five samples: their extremes hold the median with 93.75 %
        "stable": False,
        "samples": [2.0, 4.0, 3.0, 9.0, 5.0],
        "warmup": [50.0],
        "throttled": [True, False, False, False, True],
    }
    assert found["backward_ms"] is None and found["step_ms"] is None
    assert found["memory"] == {"train_peak_rss": None, "infer_peak_rss": 12.5, "infer_weights": 3.0}
    assert (found["macs"], found["flops"], found["energy_mj"], found["threads"]) == (2e9, 4e9, 250.0, 2)
    asked = {"protocol", "precision", "backend", "device", "parameters", "parameter_mb", "file_mb", "notes"}
    assert asked <= set(found)


def test_a_profile_that_failed_is_a_row_with_its_reason() -> None:
    failed = made(None, failure="no TF32 on a CPU")
    found, done = row(failed), row(made(USAGE))
    assert found["failure"] == "no TF32 on a CPU" and found["res"] == "24x32" and found["precision"] == "fp32"
    assert set(found) == set(done) and done["failure"] is None
    assert found["memory"] is found["forward_ms"] is found["energy_mj"] is None
    assert found["asked"]["memory"] is True and found["environment"] == done["environment"] != {}
    lines = list(csv.DictReader(io.StringIO(as_csv([failed, made(USAGE)]))))
    assert [line["failure"] for line in lines] == ["no TF32 on a CPU", ""]
    assert [line["forward_ms"] for line in lines] == ["", "4.0"]  # inference, as in JSON
    assert [line["forward_stable"] for line in lines] == ["", "False"] and lines[1]["train_forward_ms"] == "8.0"
    assert lines[1]["backward_ms"] == "" and lines[1]["precision"] == "fp32" and lines[1]["device"] == "card"


def test_the_interval_of_the_median_is_the_narrowest_of_its_kind() -> None:
    from math import comb

    for number in (6, 7, 9, 20, 51, 300):
        samples = Samples(tuple(float(i) for i in range(1, number + 1)))
        assert samples.interval is not None
        rank = int(samples.interval[0])
        assert samples.interval[1] == number + 1 - rank

        def held(k: int, number: int = number) -> float:
            """The chance that the k-th smallest and largest hold the median."""
            return sum(comb(number, i) for i in range(k, number - k + 1)) / 2**number

        assert held(rank) >= 0.95 > held(rank + 1)
    assert Samples((1.0, 2.0, 3.0, 4.0, 5.0)).interval is None
