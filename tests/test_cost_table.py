"""What `segbench profile` prints and writes, of usages made by hand."""

import csv
import importlib.util
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from conftest import REPOSITORY

from segbench.profiling.usage import Samples, Usage
from segbench.report.cost_files import Profiled, as_csv, as_json
from segbench.report.costs import cost_table, deviation_cells, machine_words

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
    changed: dict[str, float | None] = {"changed_pixels": 0.0125, "largest_logit_error": 0.5}
    half = replace(USAGE, precision="bf16", channels_last=True, deviation=changed, notes=("only here",))
    table = cost_table({"plain": USAGE, "half": half})
    changes = [[found[table.columns.index(head)] for head in ("Changed %", "Logit error")] for found in table.rows]
    assert changes == [["0 (reference)", "0 (reference)"], ["1.250", "0.5"]]
    assert "Changed %: pixels whose class is not that of fp32 eager" in " ".join(table.notes)
    assert any("bf16, channels-last" in note for note in table.notes)
    assert any("fp32 or bf16, channels-last" in note for note in table.notes)
    assert "half: only here" in table.notes and "plain: training at batch 4 not weighed" in table.notes
    unknown = cost_table({"unknown": replace(USAGE, backend="compile")})
    assert unknown.rows[0][unknown.columns.index("Changed %")] == "n/a"
    plain = cost_table({"plain": USAGE})
    assert "Changed %" not in [*plain.columns, *plain.notes] and "Changed" not in " ".join(plain.notes)


def test_what_a_variant_changes_is_in_the_lines_of_csv_too() -> None:
    told = replace(USAGE, deviation={"changed_pixels": 0.0125, "largest_logit_error": 0.5})
    lost = replace(USAGE, deviation={"changed_pixels": None, "largest_logit_error": None})
    lines = list(csv.DictReader(io.StringIO(as_csv([made(USAGE), made(told), made(lost), made(None, failure="x")]))))
    assert [line["changed_pixels"] for line in lines] == ["0.0", "0.0125", "", ""]
    assert [line["largest_logit_error"] for line in lines] == ["0.0", "0.5", "", ""]
    assert [line["failure"] for line in lines] == ["", "", "", "x"]
    assert deviation_cells(lost) == ["n/a", "not finite"]  # undecided, and past the end of fp16
    assert deviation_cells(replace(USAGE, precision="bf16")) == ["n/a", "n/a"]  # a variant whose deviation is not known
    assert deviation_cells(USAGE) == ["0 (reference)", "0 (reference)"] and deviation_cells(None) == ["n/a", "n/a"]


def watched(after: float, median: float | None) -> Usage:
    clock = None if median is None else {"min": 100.0, "median": median, "max": 9000.0}
    state = {
        "before": {"sm_clock_mhz": 1.0},
        "during": {"readings": 3, "sm_clock_mhz": clock, "memory_clock_mhz": None, "power_max_w": 5.0},
        "after": {"driver": "580", "sm_clock_mhz": after, "memory_clock_mhz": 2600.0, "temperature_c": 40.0},
    }
    return replace(USAGE, device_state=state)


def test_clocks_are_those_while_it_was_timed() -> None:
    machine = "Machine: card, 2 threads, driver 580; sm_clock_mhz"
    rest = "; memory_clock_mhz 2600; temperature_c 40."
    assert machine_words([watched(345, 1980)]) == [f"{machine} 1980 while timed{rest}"]
    assert machine_words([watched(345, 1980), watched(345, 1755.5)]) == [f"{machine} 1756 to 1980 while timed{rest}"]
    assert machine_words([watched(345, None)]) == [f"{machine} 345{rest}"]  # NVML did not say it then
    mixed = machine_words([watched(300, 1980), watched(345, None)])
    assert mixed == [f"{machine} 1980 while timed; sm_clock_mhz 345{rest}"]
    old = {"driver": "470", "sm_clock_mhz": 900.0}
    assert machine_words([replace(USAGE, device_state=old)]) == [
        "Machine: card, 2 threads, driver 470; sm_clock_mhz 900."
    ]
    cpu = {"before": {"load_average": 9.0}, "during": {}, "after": {"load_average": 1.5}}
    assert machine_words([replace(USAGE, device_state=cpu)]) == ["Machine: card, 2 threads; load_average 1.5."]


def test_the_benchmark_tells_what_repeats_from_what_it_called_unstable() -> None:
    place = REPOSITORY / "benchmarks/profiling.py"
    spec = importlib.util.spec_from_file_location("profiling_benchmark", place)
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    ours = [Samples((time,), stable=stable) for time, stable in ((10.0, True), (10.2, True), (20.0, False))]
    cells = benchmark.row("net", ours, [10.0, 10.2, 40.0]).split(" | ")
    assert cells[4:] == ["100.0", "2.0", "300.0", "1 of 3 |"]
    assert benchmark.row("net", ours[1:], [10.2, 20.0]).split(" | ")[5] == "n/a"
    heads = next(line for line in place.read_text().splitlines() if "segbench ms" in line)
    assert heads.count("|") - 1 == len(cells)


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
