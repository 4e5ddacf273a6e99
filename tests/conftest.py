"""What several test files share: the real CamVid where it is, and the rule that CI skips nothing it could run."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

# The networks of the tests are tiny: threads would spend their time waiting for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# A shell's background jobs ignore Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent
SUITES = sorted((REPOSITORY / "suites").glob("*.yaml"))


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command line in this process; its exit code."""
    from segbench.cli import main

    monkeypatch.setattr(sys, "argv", ["segbench", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    """A folder with the real CamVid in its usual layout, from SEGBENCH_DATA."""
    root = Path(os.environ.get("SEGBENCH_DATA", REPOSITORY / "data"))
    for place in (root, root / "CamVid"):
        if (place / "testannot").is_dir():
            return root
    pytest.skip("the real CamVid is not here; put it into data/CamVid or name its folder in SEGBENCH_DATA")


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test finds only the data that it names itself."""
    monkeypatch.delenv("SEGBENCH_DATA", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _scenes_are_drawn_once() -> Iterator[None]:
    """Checks of every shape make the drawing seven times slower, and most tests draw the same few scenes."""
    from segbench.data import synthetic

    draw = lru_cache(maxsize=1024)(synthetic.draw_scene)

    def remembered(seed: list[int], size: tuple[int, int]) -> tuple[np.ndarray, ...]:
        return tuple(part.copy() for part in draw(tuple(seed), size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "draw_scene", remembered)
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CI=true, tests that were skipped because a package of the `test` extra is missing fail the session."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    missing = [report for report in skipped if "could not import" in str(report.longrepr)]
    if os.environ.get("CI") and missing:
        for report in missing:
            reporter.write_line(f"FAILED {report.nodeid}: skipped in CI, where everything is installed", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def mini_camvid(tmp_path: Path, camvid_root: Path) -> Path:
    """Six real frames a split, copied, for tests that damage them."""
    source = camvid_root / "CamVid" if (camvid_root / "CamVid").is_dir() else camvid_root
    target = tmp_path / "CamVid"
    for split in ("train", "val", "test"):
        names = sorted(p.stem for p in (source / f"{split}annot").iterdir())[:6]
        (target / split).mkdir(parents=True)
        (target / f"{split}annot").mkdir()
        for name in names:
            frame = next((source / split).glob(f"{name}.*"))
            shutil.copy(frame, target / split)
            shutil.copy(source / f"{split}annot" / f"{name}.png", target / f"{split}annot")
        (target / f"{split}.txt").write_text(
            "".join(f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png\n" for n in names)
        )
    return tmp_path
