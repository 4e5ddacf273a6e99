"""The rules of the house: import order, what stays light, and what the suites promise."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, SUITES

from segbench.errors import SettingError
from segbench.suite.load import load

PACKAGE = REPOSITORY / "segbench"
# Left to right only; modules in one group stand side by side and do not import each other.
ORDER = [
    {"errors", "spec"},
    {"durable", "registry", "settings_file", "workers", "published", "precision"},
    {"models", "metrics"},
    {"data"},
    {"scoring"},
    {"engine", "profiling"},
    {"suite"},
    {"store"},
    {"report"},
    {"preparation"},
    {"stages"},
    {"pipeline"},
    {"together", "fanout"},
    {"cli"},
    {"__main__"},
]


def room(module: str) -> str | None:
    """`segbench.data.camvid` -> `data`; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports(path: Path) -> set[str]:
    """Every segbench module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "segbench" else {node.module}
            )
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "segbench"}


def test_every_module_has_a_place_in_the_order() -> None:
    rooms = {
        p.stem if p.is_file() else p.name
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == set().union(*ORDER)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_left_to_right(path: Path) -> None:
    place = {name: index for index, group in enumerate(ORDER) for name in group}
    own = room("segbench." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    if own == "__init__":
        assert not imports(path)
        return
    for module in imports(path):
        target = room(module)
        if target and target in place and target != own:
            assert place[target] < place[own], f"{own} imports {module}"  # type: ignore[index]


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    source = tmp_path / "wrong.py"
    source.write_text("def f():\n    from segbench.cli import app\n    from segbench import store\n")
    assert imports(source) == {"segbench.cli", "segbench.store"}


LIGHT = [
    ["--help"],
    ["run", "--help"],
    ["models"],
    ["models", "--json"],
    ["datasets"],
    ["run", str(REPOSITORY / "suites/quickstart.yaml"), "--dry-run"],
    ["run", str(REPOSITORY / "suites/camvid.yaml"), "--dry-run"],
    ["run", str(REPOSITORY / "suites/table6.yaml"), "--dry-run"],
    ["profile", "--help"],
    ["report", str(REPOSITORY / "results/camvid-small")],
    ["report", str(REPOSITORY / "results/camvid-small"), "--style", "table6"],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=lambda a: " ".join(Path(x).name for x in a))
def test_torch_is_not_imported(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom segbench.cli import main\nsys.argv[0] = 'segbench'\n"
        "try:\n    main()\nexcept SystemExit as e:\n    code = e.code\n"
        "print('TORCH' if 'torch' in sys.modules else 'LIGHT', code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] in ("LIGHT 0", "LIGHT None"), done.stdout + done.stderr


def best_of(command: list[str], times: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began

    return min(once() for _ in range(times))


def test_help_answers_at_once() -> None:
    typer = best_of([sys.executable, "-c", "import typer"], 5)
    ours = best_of([sys.executable, "-m", "segbench.cli", "--help"], 5)
    assert ours < 3 * typer, f"segbench --help takes {ours:.2f} s, import typer {typer:.2f} s"


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_every_suite_loads_and_plans(path: Path) -> None:
    suite, runs = load(path)
    assert suite.name == path.stem
    assert (
        len({run.name for run in runs}) == len(runs) == len(suite.models) * len(suite.seeds) * (len(suite.profile) or 1)
    )


def test_the_readme_holds_what_it_promises(tmp_path: Path) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    for command in ("pip install -e . && segbench run suites/quickstart.yaml", "pip install -e '.[test]' && pytest"):
        assert f"```sh\n{command}\n```" in readme
    first, models, recipe = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "first.yaml").write_text(first)
    _, runs = load(tmp_path / "first.yaml")
    assert len(runs) == 9
    scored = "score: {at: [last]}\n"
    (tmp_path / "models.yaml").write_text(f"name: models\ndata: {{name: synthetic}}\n{models}{recipe}{scored}")
    _, runs = load(tmp_path / "models.yaml", allow_code=True)
    assert [run.inference.name for run in runs].count("plain") == 5
    with pytest.raises(SettingError, match="--allow-code"):
        load(tmp_path / "models.yaml")
    for path in re.findall(r"`(suites/[\w.-]+)`", readme):
        assert (REPOSITORY / path).is_file()
    for path in SUITES:
        assert f"suites/{path.name}" in readme


def test_the_benchmark_suites_hold_the_papers_protocol() -> None:
    for name, batch, images in (("camvid", 5, 367), ("sunrgbd", 4, 5000)):
        suite, runs = load(REPOSITORY / f"suites/{name}.yaml")
        assert {r.model for r in runs} == {
            *("segnet", "fcn8s", "deeplab-largefov", "deeplab-largefov-densecrf", "deconvnet", "unet")
        }
        assert {r.options.get("deconvolution") for r in runs if r.model == "fcn8s"} == {"fixed", "learnt"}
        for run in runs:
            assert run.recipe and run.recipe.optimizer.lr == 1e-3 and run.recipe.batch_size == batch
            assert run.recipe.iterations * batch / images > 100, "more than 100 epochs"
            assert run.recipe.norm_statistics == "training-set"
            assert (run.inference.name == "dense-crf") == (run.model == "deeplab-largefov-densecrf")
            assert len(run.checkpoints) == 4 and run.checkpoints[-1] == "best"
        assert [(profile.res, profile.protocol) for profile in suite.profile] == [((360, 480), "caffe-time")]
