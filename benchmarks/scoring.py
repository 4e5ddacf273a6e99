"""What scoring costs: the counters against other libraries' on the same maps, and `segbench score` against Pillow.

    python benchmarks/scoring.py [--data data] [--out benchmarks/scoring.md] [--only counters|folder|memory]

Needs CamVid, opencv-python-headless and a C compiler. Counters: one process, one thread, the ways take turns over the
same pairs, medians of rounds; the counts of all ways are compared first. Folder: the 233 test annotations and their
predictions forty times over, whole processes; Pillow decodes the same files in two processes. Memory: the largest
resident set of a fresh process above that of the same process once it has counted a small pair and read both maps.
"""

import argparse
import ctypes
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scoring_pairs import annotations, pairs

from segbench.metrics.boundary import Matching, boundary_counts, boundary_counts_of, tolerance_squared
from segbench.metrics.compiled import kernels
from segbench.metrics.confusion import confusion

K, SIZE = 11, (360, 480)
FRACTION = Fraction(3, 400)
T = tolerance_squared(SIZE, FRACTION)
Pair = tuple[np.ndarray, np.ndarray]

COUNTER = """
void count(const unsigned char *truth, const unsigned char *guess, long n, unsigned long long *table, int side) {
    for (long i = 0; i < n; ++i) ++table[truth[i] * side + guess[i]];
}
"""


def compiled_counter(folder: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A plain loop over pixels in C, as cityscapesScripts' compiled counter is (which PyPI's archive lacks)."""
    source, library = folder / "counter.c", folder / "counter.so"
    source.write_text(COUNTER)
    subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", library, source], check=True)
    count = ctypes.CDLL(str(library)).count

    def run(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
        table = np.zeros((K + 1, K + 1), np.uint64)
        count(
            *(ctypes.c_void_p(m.ctypes.data) for m in (truth, guess)),
            ctypes.c_long(truth.size),
            ctypes.c_void_p(table.ctypes.data),
            ctypes.c_int(K + 1),
        )
        return table.astype(np.int64)

    return run


def opencv_histogram(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    found = cv2.calcHist([truth, guess], [0, 1], None, [K + 1, K + 1], [0, K + 1, 0, K + 1])
    return found.astype(np.int64)


def masked_bincount(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """The usual lines of NumPy (`fast_hist`), without void."""
    known = truth < K
    found = np.bincount(K * truth[known].astype(int) + guess[known], minlength=K * K).reshape(K, K)
    return np.pad(found, ((0, 1), (0, 1)))


def edges(labels: np.ndarray, c: int) -> np.ndarray:
    """seg2bdry(labels == c, 'imageSize') for one class."""
    here = np.pad(labels == c, ((0, 1), (0, 1)), mode="edge")
    return (here[:-1, :-1] ^ here[1:, :-1]) | (here[:-1, :-1] ^ here[:-1, 1:]) | (here[:-1, :-1] ^ here[1:, 1:])


def by_class(one: Callable[[np.ndarray, np.ndarray], tuple[int, int]]) -> Callable[..., np.ndarray]:
    """Boundary counts from a rule for two binary maps."""

    def run(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
        counts = np.zeros((K, 4), np.int64)
        for c in range(K):
            found, expected = edges(guess, c), edges(truth, c)
            n_pred, n_gt = int(found.sum()), int(expected.sum())
            hits = one(found, expected) if n_pred and n_gt else (0, 0)
            counts[c] = n_pred, hits[0], n_gt, hits[1]
        return counts

    return run


REACH = int(T**0.5)
DISK = (np.add.outer(np.arange(-REACH, REACH + 1) ** 2, np.arange(-REACH, REACH + 1) ** 2) <= T).astype(np.uint8)


def dilated(found: np.ndarray, expected: np.ndarray) -> tuple[int, int]:
    near, nearby = (cv2.dilate(m.view(np.uint8), DISK) for m in (expected, found))
    return int((found & near.view(bool)).sum()), int((expected & nearby.view(bool)).sum())


def distance_map(found: np.ndarray, expected: np.ndarray) -> tuple[int, int]:
    far, farther = (distance_transform_edt(~m) for m in (expected, found))
    limit = T**0.5 + 1e-9
    return int((far[found] <= limit).sum()), int((farther[expected] <= limit).sum())


def sparse_matching(found: np.ndarray, expected: np.ndarray) -> tuple[int, int]:
    numbers = np.full((found.shape[0] + 2 * REACH, found.shape[1] + 2 * REACH), -1, np.int32)
    ys, xs = np.nonzero(expected)
    numbers[ys + REACH, xs + REACH] = np.arange(ys.size)
    y, x = np.nonzero(found)
    dy, dx = np.nonzero(DISK)
    reached = numbers[y[:, None] + dy, x[:, None] + dx]
    linked = reached >= 0
    starts = np.concatenate([[0], np.cumsum(linked.sum(1))])
    graph = csr_array((np.ones(starts[-1], np.int8), reached[linked], starts), shape=(y.size, ys.size))
    size = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
    return size, size


def alike(ways: dict[str, Callable[..., np.ndarray]], given: list[Pair]) -> None:
    """All ways give the same counts of classes."""
    for pair in given:
        first, *others = (way(*pair)[:K, : max(K, 4)] for way in ways.values())
        assert all(np.array_equal(first, other) for other in others), list(ways)


def medians(ways: dict[str, Callable[..., object]], given: list[Pair], rounds: int) -> dict[str, float]:
    """Median milliseconds a pair, the ways taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(*given[0])
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            for pair in given:
                way(*pair)
            taken[name].append(1e3 * (time.perf_counter() - began) / len(given))
    return {name: statistics.median(times) for name, times in taken.items()}


def table(title: str, found: dict[str, float], least: dict[str, float]) -> list[str]:
    """The first way is ours; `least` is what is asked for against the others."""
    own = next(iter(found.values()))
    rows = [f"| {name} | {ms:.3f} | {ms / own:.2f} | {least.get(name, '')} |" for name, ms in found.items()]
    return [f"## {title}", "", "| | ms a pair | times ours | asked for |", "|---|--:|--:|--:|", *rows, ""]


def counters(paths: list[Path]) -> list[str]:
    cv2.setNumThreads(1)
    given = pairs(paths)
    with tempfile.TemporaryDirectory() as folder:
        compiled = compiled_counter(Path(folder))
    regions: dict[str, Callable[..., np.ndarray]] = {
        "segbench confusion": lambda t, p: confusion(t, p, K),
        "OpenCV calcHist": opencv_histogram,
        "compiled loop (C)": compiled,
        "NumPy masked bincount": masked_bincount,
    }
    near: dict[str, Callable[..., np.ndarray]] = {
        "segbench distance": lambda t, p: boundary_counts(t, p, K, "distance", T),
        "OpenCV dilation, exact disk": by_class(dilated),
        "SciPy distance transform": by_class(distance_map),
    }
    paired: dict[str, Callable[..., np.ndarray]] = {
        "segbench bsds": lambda t, p: boundary_counts(t, p, K, "bsds", T),
        "SciPy sparse matching": by_class(sparse_matching),
    }
    for ways in (regions, near, paired):
        alike(ways, given[::29])
    both = [Matching("distance", T), Matching("bsds", T)]
    reading: dict[str, Callable[..., object]] = {
        "two PNGs decoded by Pillow": lambda *_: [np.array(Image.open(path)) for path in paths[:2]],
        "confusion and distance": lambda t, p: (confusion(t, p, K), boundary_counts_of(t, p, K, both[:1])),
        "confusion, distance and bsds": lambda t, p: (confusion(t, p, K), boundary_counts_of(t, p, K, both)),
    }
    return [
        *table("Confusion counts", medians(regions, given, 15), {"OpenCV calcHist": 3.5, "compiled loop (C)": 3.5}),
        *table(
            "Boundary counts, distance",
            medians(near, given[::12], 5),
            {"OpenCV dilation, exact disk": 18, "SciPy distance transform": 200},
        ),
        *table("Boundary counts, bsds", medians(paired, given[::24], 3), {"SciPy sparse matching": 60}),
        *table("Against reading the files", medians(reading, given, 7), {}),
    ]


TIMES_OVER = 40

DECODE = """
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np
from PIL import Image

def decode(paths):
    for path in paths:
        with Image.open(path) as image:
            np.array(image)

if __name__ == "__main__":
    paths = [p for folder in sys.argv[1:] for p in sorted(Path(folder).iterdir())]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(decode, [paths[start : start + 64] for start in range(0, len(paths), 64)]))
"""


def folders(paths: list[Path], place: Path, times_over: int) -> tuple[Path, Path]:
    """(truth, predictions) with every annotation and its prediction that many times over, under names of their own."""
    truth, guessed = place / "truth", place / "predictions"
    for folder in (truth, guessed):
        folder.mkdir()
    for path, (_, guess) in zip(paths, pairs(paths), strict=True):
        first = guessed / path.name
        Image.fromarray(guess).save(first)
        sources = path.read_bytes(), first.read_bytes()
        first.unlink()
        for copy in range(times_over):
            name = path.name.replace("_", f"_{copy:03d}_", 1)
            for folder, data in zip((truth, guessed), sources, strict=True):
                (folder / name).write_bytes(data)
    return truth, guessed


def process_seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def folder(paths: list[Path], rounds: int) -> list[str]:
    """Whole processes, taking turns; each is run once before, so that compiled code and files are at hand for all."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        truth, guessed = folders(paths, place, TIMES_OVER)
        decode, one = place / "decode.py", place / "one"
        decode.write_text(DECODE)
        one.mkdir()
        small = folders(paths[:1], one, 1)
        score = [sys.executable, "-m", "segbench.cli", "score", "--dataset", "camvid"]
        pair = ["--truth", str(small[0]), "--predictions", str(small[1])]
        both = ["--rule", "distance", "--rule", "bsds"]
        asked = ["--truth", str(truth), "--predictions", str(guessed)]
        ways = {
            "Pillow decodes the files, two processes": [sys.executable, str(decode), str(truth), str(guessed)],
            "segbench score, distance": [*score, *asked, "--rule", "distance"],
            "segbench score, distance and bsds": [*score, *asked, *both],
            "segbench score, one pair (start-up)": [*score, *pair, *both],
        }  # fmt: skip
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(rounds + 1):
            for name, command in ways.items():
                seconds = process_seconds(command)
                if round_:
                    taken[name].append(seconds)
    asked_for = {"segbench score, distance": "1.5", "segbench score, distance and bsds": "3"}
    least = {name: statistics.median(seconds) for name, seconds in taken.items()}
    base = next(iter(least.values()))
    rows = [f"| {n} | {s:.2f} | {s / base:.2f} | {asked_for.get(n, '')} |" for n, s in least.items()]
    title = f"## `segbench score` on {len(paths) * TIMES_OVER} pairs, whole processes"
    return [title, "", "| | seconds | times Pillow | at most |", "|---|--:|--:|--:|", *rows, ""]


# Of the process alone: ru_maxrss of getrusage begins with that of the process which started it.
PEAK = """
import re, sys
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""

LARGE = f"""{PEAK}
import numpy as np
from segbench.metrics.boundary import boundary_counts
from segbench.metrics.confusion import confusion

small = np.zeros((64, 64), np.uint8)
small[:20] = 1
confusion(small, small, 11), boundary_counts(small, small, 11, "distance", 20)
truth, guess = np.load(sys.argv[1]), np.load(sys.argv[2])
before = peak()
confusion(truth, guess, 11), boundary_counts(truth, guess, 11, "distance", int(sys.argv[3]))
print((peak() - before) / truth.size)
"""

MANY = f"""{PEAK}
import resource
from segbench.cli import app
sys.argv = ["segbench", *sys.argv[1:]]
try:
    app()
except SystemExit:
    pass
print(peak() / 2**20, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def last_numbers(command: list[str]) -> list[float]:
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(number) for number in printed.splitlines()[-1].split()]


def mosaic(maps: list[np.ndarray], side: int) -> np.ndarray:
    """Maps of 360x480 side by side, cut to a square."""
    across, down = -(-side // SIZE[1]), -(-side // SIZE[0])
    rows = [np.concatenate(maps[row * across : (row + 1) * across], 1) for row in range(down)]
    return np.ascontiguousarray(np.concatenate(rows)[:side, :side])


def memory(paths: list[Path]) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        rows = [*large_maps(paths, place), *many_pairs(paths, place)]
    return ["## Memory", "", "| | found | at most |", "|---|--:|--:|", *rows, ""]


def large_maps(paths: list[Path], place: Path) -> list[str]:
    side = 6000
    limit = str(tolerance_squared((side, side), FRACTION))
    noise = np.random.default_rng(0).integers(0, K, (2, side, side), np.uint8)
    lifelike = [mosaic(list(maps), side) for maps in zip(*pairs(paths), strict=True)]
    rows = []
    for kind, maps in {"CamVid side by side": lifelike, "uniform noise": noise}.items():
        files = [place / f"{which}.npy" for which in ("truth", "guess")]
        for file, labels in zip(files, maps, strict=True):
            np.save(file, labels)
        (found,) = last_numbers([sys.executable, "-c", LARGE, *map(str, files), limit])
        rows.append(f"| 6000x6000, {kind}: confusion and distance, bytes a pixel above both maps | {found:.2f} | 6 |")
    return rows


def many_pairs(paths: list[Path], place: Path) -> list[str]:
    """`segbench score` on 233 pairs and on 20,038: what the larger needs more, beside what its counts take."""
    few, many = place / "few", place / "many"
    peaks = []
    for folder, times_over in ((few, 1), (many, 86)):
        folder.mkdir()
        truth, guessed = folders(paths, folder, times_over)
        options = ["--dataset", "camvid", "--rule", "distance", "--truth", str(truth), "--predictions", str(guessed)]
        peaks.append(last_numbers([sys.executable, "-c", MANY, "score", *options]))
    images = 85 * len(paths)
    counts = images * 8 * ((K + 1) ** 2 + 4 * K) / 2**20
    (own, worker), (own_later, worker_later) = peaks
    return [
        f"| {len(paths)} pairs: peak resident set, MiB | {own:.0f} | |",
        f"| {len(paths)} pairs: that of the largest of the processes that count, MiB | {worker:.0f} | |",
        f"| {images + len(paths)} pairs: MiB more | {own_later - own:.0f} | |",
        f"| {images + len(paths)} pairs: MiB more in the largest process that counts | {worker_later - worker:.0f} | |",
        f"| the additional counts, MiB | {counts:.0f} | |",
    ]


def processor() -> str:
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return models[0] if models else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds CamVid")
    parser.add_argument("--out", type=Path, help="a Markdown file; the terminal otherwise")
    parser.add_argument("--only", choices=["counters", "folder", "memory"])
    given = parser.parse_args()
    assert kernels(), "numba did not load: these would be the times of the fallback"
    paths = annotations(given.data)
    parts = {"counters": counters, "folder": lambda paths: folder(paths, 3), "memory": memory}
    libraries = ("numpy", "scipy", "numba", "pillow", "opencv-python-headless")
    lines = [
        "# What scoring costs",
        "",
        f"{processor()}, {os.cpu_count()} processors, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in libraries)}, {date.today()}.",
        "Made by `python benchmarks/scoring.py` of CamVid's test split; predictions: see `scoring_pairs.py`.",
        "",
    ]
    for name, part in parts.items():
        if given.only in (None, name):
            print(f"{name} ...", file=sys.stderr, flush=True)
            lines += part(paths)
    lines.append(f"Load of the machine at the end, this work included: {os.getloadavg()[0]:.1f}.\n")
    text = "\n".join(lines)
    given.out.write_text(text) if given.out else print(text)


if __name__ == "__main__":
    main()
