"""`segbench run --dry-run`: the plan, what of it is done, and what the rest would cost. No torch."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from segbench.data import open_splits
from segbench.data.dataset import Dataset
from segbench.errors import DataError
from segbench.profiling.spec import ProfileSpec
from segbench.spec import write_size
from segbench.store.files import Results, Work
from segbench.suite.plan import Keys, Run, given, needed_splits, resolve_keys, with_lengths
from segbench.suite.schema import Suite


def print_plan(suite: Suite, runs: list[Run], results: Path, work: Path, data: Path | None) -> None:
    """Every run with its stages, and an estimate of what is left to do."""
    console = Console()
    datasets: dict[str, Dataset] = {}
    try:
        datasets = open_splits(runs[0].data, needed_splits(runs), data)
    except DataError as error:
        console.print(f"The data is not here, so nothing is known to be done: {error}", style="yellow", soft_wrap=True)
    runs = with_lengths(runs, len(datasets["train"]) if "train" in datasets else None)
    digests = {split: dataset.digest() for split, dataset in datasets.items()}
    known = bool(digests) or runs[0].data is None
    table = Table("Run", "Train", "Score", "Profile", title=f"{suite.name}: {len(runs)} runs", title_justify="left")
    images, todo, counted = 0, list[Run](), set[str | None]()
    for run in runs:
        keys = resolve_keys(run, digests, given(run)) if known else None
        record = Results(results).find(run.suite, keys.record) if keys else None
        finished = record is not None and record.status == "done"
        train, left = training_words(run, keys, Work(work), finished or kept(run, keys, Work(work)))
        shared = keys.train if keys else None
        if left and (shared is None or shared not in counted):
            images += left
            todo.append(run)
            counted.add(shared)
        table.add_row(run.name, train, scoring_words(run, keys, Work(work), finished), profile_words(run, finished))
    console.print(table)
    console.print(
        f"To train: {images:,} images in all. {scoring_load(runs, datasets)}{speed_words(runs, todo, results)}",
        soft_wrap=True,
    )


def training_words(run: Run, keys: Keys | None, work: Work, finished: bool) -> tuple[str, int]:
    """What the training is, and how many images it still has to see."""
    if not run.recipe:
        return "nothing to train", 0
    recipe = run.recipe
    if finished:
        return "done", 0
    begun = keys and keys.train and (work.place("train", keys.train) / "resume.safetensors").exists()
    images = recipe.batch_size * recipe.accumulate
    length = f"{recipe.iterations} iterations of {images}" if recipe.iterations else f"{recipe.epochs} epochs"
    words = f"{'goes on, of ' if begun else ''}{'at most ' if recipe.patience else ''}{length}"
    return words, (recipe.iterations or 0) * images


def kept(run: Run, keys: Keys | None, work: Work) -> bool:
    """Whether the training is finished and has every checkpoint that this run scores."""
    if not keys or not keys.train or not work.facts("train", keys.train):
        return False
    place = work.place("train", keys.train)
    return all((place / f"{at}.safetensors").is_file() for at in run.checkpoints if at.isdigit())


def scoring_words(run: Run, keys: Keys | None, work: Work, finished: bool) -> str:
    """Each checkpoint with what is known of it."""
    if not run.checkpoints:
        return "nothing to score"
    done = {at for at in run.checkpoints if finished or (keys and work.facts("evaluate", keys.evaluate[at]))}
    return ", ".join(f"{at} (done)" if at in done else at for at in run.checkpoints)


def profile_words(run: Run, finished: bool) -> str:
    if not run.profile:
        return "no"
    return "done" if finished else ", ".join([f"at {write_size(run.profile.res)}", *variant(run.profile)])


def variant(spec: ProfileSpec) -> list[str]:
    """What is not plain fp32 at batch 1."""
    words: list[str] = [] if spec.precision == "fp32" else [spec.precision]
    words += [] if spec.backend == "eager" else [spec.backend]
    return words + ([] if spec.time_batch == 1 else [f"batch {spec.time_batch}"])


def scoring_load(runs: list[Run], datasets: dict[str, Dataset]) -> str:
    if "test" not in datasets:
        return ""
    return f"To score: {len(datasets['test']):,} images a checkpoint. "


def speed_words(runs: list[Run], todo: list[Run], results: Path) -> str:
    """Hours by earlier records of the same models and recipes' batch, where there are some; no guess otherwise."""
    from segbench.store.files import record_folders
    from segbench.store.record import read_record

    rates: dict[str, float] = {}
    if results.is_dir() and any(results.glob("**/record.json")):
        for folder in record_folders(results):
            record = read_record(folder)
            if record.training and record.run["suite"] == runs[0].suite:
                rates[record.run["label"]] = record.training["seconds"] / record.training["iteration"]
    lengths = {r.label: r.recipe.iterations for r in todo if r.recipe and r.recipe.iterations}
    estimates = [rates[r.label] * lengths[r.label] for r in todo if r.label in rates and r.label in lengths]
    if not estimates:
        return "No earlier record of this suite says how long that takes."
    return (
        f"By {len(rates)} earlier records on their own machines, training {len(estimates)} of the {len(todo)} left "
        f"takes {sum(estimates) / 3600:.2f} h."
    )
