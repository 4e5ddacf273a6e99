"""Several profiles written as one, in a suite and on the command line."""

from pathlib import Path
from typing import Any

import pytest

from segbench.cli.profile import read_specs
from segbench.errors import SettingError
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.sweep import points, told_apart
from segbench.suite.load import load

SUITE = """name: costs
models: [segnet-basic, fcn-basic]
profile: {res: [24x32, 48x64], precision: [fp32, bf16], memory: false}
"""


def test_lists_are_combined_and_single_values_stay() -> None:
    found = points({"res": ["24x32", "48x64"], "precision": ["fp32", "bf16"], "memory": False})
    assert [(p["res"], p["precision"]) for p in found] == [
        ("24x32", "fp32"),
        ("24x32", "bf16"),
        ("48x64", "fp32"),
        ("48x64", "bf16"),
    ]
    assert all(p["memory"] is False for p in found)
    assert points({"res": [24, 32]}) == [{"res": [24, 32]}]  # one size
    assert points({}) == [{}]


def test_points_are_told_apart_by_what_differs_alone() -> None:
    specs = [ProfileSpec(res=(24, 32), precision=p, time_batch=b) for p in ("fp32", "bf16") for b in (1, 4)]
    assert told_apart(specs) == [["fp32", "batch 1"], ["fp32", "batch 4"], ["bf16", "batch 1"], ["bf16", "batch 4"]]
    assert told_apart(specs[:1]) == [[]]


def test_a_suite_has_a_run_for_each_point(tmp_path: Path) -> None:
    (tmp_path / "costs.yaml").write_text(SUITE)
    suite, runs = load(tmp_path / "costs.yaml")
    assert len(suite.profile) == 4 and len(runs) == 8
    assert [run.name for run in runs[:2]] == ["segnet-basic-24x32-fp32", "segnet-basic-24x32-bf16"]
    assert [(r.model, r.profile.res, r.profile.precision) for r in runs if r.profile][2:5] == [
        ("segnet-basic", (48, 64), "fp32"),
        ("segnet-basic", (48, 64), "bf16"),
        ("fcn-basic", (24, 32), "fp32"),
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("precision: [fp32, bf17]", ['profile.precision: "bf17" is not one of fp32, tf32, bf16, fp16', "bf16"]),
        ("precision: []", ["profile", "empty list"]),
        ("precision: [fp32, fp32]", ["profile", "twice"]),
        ("time_batch: [1, 0]", ["profile.time_batch", "greater than 0"]),
        ("scope: model+magic", ['profile.scope: "model+magic" is not a scope']),
        ("scope: model+loader", ["profile.scope", "add +input"]),
        ("scope: model+resize", ["profile", "needs `frame`"]),
        ("backend: compile, cuda_graphs: true", ["profile", "captures the eager backend"]),
        ("backend: [eager, onnxruntime], precision: [fp32, bf16]", ["profile", "neither autocast nor"]),
        ("repetitions: 3", ["profile", "`repetitions` is a setting of the protocol caffe-time; found steady"]),
        ("protocol: caffe-time, min_samples: 3", ["`min_samples` is a setting of the protocol steady"]),
        ("precison: fp32", ["profile.precison is not a setting of", 'did you mean "precision"?']),
    ],
)
def test_a_mistake_in_a_sweep_is_told_at_its_line(tmp_path: Path, wrong: str, words: list[str]) -> None:
    (tmp_path / "costs.yaml").write_text(SUITE.replace("precision: [fp32, bf16]", wrong))
    with pytest.raises(SettingError) as told:
        load(tmp_path / "costs.yaml")
    assert "costs.yaml:3" in str(told.value) and "\n" not in str(told.value)
    assert all(word in str(told.value) for word in words), told.value


def test_a_scope_has_one_name() -> None:
    assert ProfileSpec(scope="model+argmax+input").scope == "model+input+argmax"
    assert ProfileSpec(scope=" model + transfer").scope == "model+transfer"
    for wrong in ("input", "model+input+input", "model+", "", 3):
        with pytest.raises(ValueError, match="scope"):
            ProfileSpec.model_validate({"scope": wrong})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"res": ["360"]}, '--res: "360" is not a size'),
        ({"time_batch": ["1", "x"]}, "--batch: "),
        ({"precision": ["fp31"]}, '--precision: "fp31" is not one of fp32, tf32, bf16, fp16; did you mean "fp32"?'),
        ({"precision": ["fp32", "fp32"]}, "--precision: names a value twice"),
        ({"backend": ["tensorrt"]}, '--backend: "tensorrt" is not one of eager, compile, onnxruntime'),
        ({"min_seconds": 0.0}, "--min-seconds: "),
        ({"max_seconds": float("inf")}, "--max-seconds: "),
        ({"min_seconds": 50.0}, "--max-seconds is 60, for warm-up and measuring; allow four times --min-seconds (50)"),
        ({"time_batch": ["1", "01"]}, "stands there twice"),
        ({"scope": "net"}, '--scope: "net" is not a scope'),
        ({"scope": "model+resize"}, "needs --frame"),
    ],
)
def test_a_mistake_on_the_command_line_names_its_flag(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as told:
        read_specs(given)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_the_command_line_asks_for_what_a_suite_would() -> None:
    given = {"res": ["24x32", "48x64"], "time_batch": ["1", "2"], "precision": ["bf16"], "min_samples": None}
    found = read_specs(given)
    assert found == [ProfileSpec(res=r, time_batch=b, precision="bf16") for r in ((24, 32), (48, 64)) for b in (1, 2)]
