"""What stands below a table of records: one line for everything that its numbers depend on, in words."""

from collections.abc import Iterable, Sequence
from typing import Any

from segbench.profiling.usage import Usage
from segbench.store.record import Record

RULES = {"bsds": "one-to-one matching (bsds)", "distance": "within the tolerance (distance)"}
LOSSES = {"weights": ", loss over the sum of weights", "none": ", loss summed over the batch"}


def notes(done: Sequence[Record], superseded: int) -> list[str]:
    """What a reader must know to believe a table of these records: data, convention, seeds, device, date and commit."""
    lines = [
        *distinct("Data", (data_line(r) for r in done)),
        *distinct("Scores", (line for r in done for line in score_lines(r))),
        *training_lines(done),
        *inference_lines(done),
        *dict.fromkeys(cost_words(Usage.from_dict(r.usage)) for r in done if r.usage),
        *machine_lines(done),
    ]
    seeds = sorted({r.run["seed"] for r in done if r.run["seed"] is not None})
    if len(seeds) > 1:
        lines.append(f"Seeds: {', '.join(map(str, seeds))}; mean ± sample standard deviation over a row's seeds.")
    elif seeds:
        lines.append(f"Seeds: {seeds[0]} alone, so the spread over seeds is not known.")
    splits = {(r.keys["data"].get("test"), r.evaluations[0].size) for r in done if r.evaluations}
    if len(splits) > 1:
        lines.append("Warning: the rows were scored on different data and do not compare.")
    if superseded:
        lines.append(f"{superseded} older record(s) of the same runs are not shown.")
    missing = (note for r in done if r.usage for note in r.usage["notes"] if "not" in note.split())
    lines += dict.fromkeys(f"Note: {note}." for note in missing)
    return lines


def distinct(heading: str, values: Iterable[str | None]) -> list[str]:
    """One line for each different value."""
    return [f"{heading}: {value}" for value in dict.fromkeys(v for v in values if v)]


def data_line(record: Record) -> str | None:
    if not record.data or not record.evaluations:
        return None
    first = record.evaluations[0]
    return (
        f"{record.data['origin']}; {first.split} split, {first.images} images scored at {first.size}, "
        f"{len(record.classes)} classes."
    )


def score_lines(record: Record) -> list[str]:
    """The convention of every score, in words."""
    score = record.run["score"]
    if not score or not record.evaluations:
        return []
    lines = [
        "percent. G, C and mIoU come from one confusion matrix over the split; pixels with void truth are left out, "
        "void predictions elsewhere are errors; C averages classes with truth, mIoU classes with a union."
    ]
    if score["boundary"]:
        rules = ", ".join(RULES[rule] for rule in score["boundary"]["rules"])
        tolerances = ", ".join(t.replace("%", " % of the diagonal") for t in score["boundary"]["tolerances"])
        lines.append(
            f"BF: boundary F1, {rules}, tolerance {tolerances}; mean over the classes with a boundary in truth or "
            "prediction of an image, then over images, as in the SegNet authors' script."
        )
    return lines


def training_lines(records: Sequence[Record]) -> list[str]:
    """Each recipe once, with the labels that it trained unless it trained them all."""
    by_recipe: dict[str, dict[str, None]] = {}
    for record in records:
        if record.run["recipe"]:
            by_recipe.setdefault(recipe_words(record.run["recipe"]), {})[record.run["label"]] = None
    if len(by_recipe) == 1:
        return [f"Training: {words}." for words in by_recipe]
    return [f"Training of {', '.join(labels)}: {words}." for words, labels in by_recipe.items()]


def recipe_words(recipe: dict[str, Any]) -> str:
    """A recipe in a line; what older records did not know stood at its default."""
    optimizer = recipe["optimizer"]
    momentum = f" and momentum {optimizer['momentum']:g}" if "momentum" in optimizer else ""
    chosen = f"; best by validation {recipe['select_by'].replace('_', ' ')}" if recipe["validate_every"] else ""
    loss = LOSSES.get(recipe.get("loss_normaliser", ""), "")
    norm = ", batch-norm statistics of the training set" if recipe.get("norm_statistics") == "training-set" else ""
    fed = ", ".join(f"{key} {value}" for key, value in (recipe.get("input") or {}).items() if value is not None)
    return (
        f"{optimizer['name']}, rate {optimizer['lr']:g}{momentum}, batch {recipe['batch_size']}, "
        f"{recipe['iterations']} iterations, {recipe['class_weights']} class weights{loss}{norm}"
        f"{f', input with {fed}' if fed else ''}{chosen}"
    )


def inference_lines(records: Sequence[Record]) -> list[str]:
    """How labels were made where it was not by the largest logit, each way once."""
    by_way: dict[str, dict[str, None]] = {}
    for record in records:
        words = inference_words(record.run.get("inference") or {"name": "plain"}) if record.evaluations else None
        if words:
            by_way.setdefault(words, {})[record.run["label"]] = None
    return [f"Labels of {', '.join(labels)}: {words}." for words, labels in by_way.items()]


def inference_words(inference: dict[str, Any]) -> str | None:
    if inference["name"] == "monte-carlo":
        return f"the largest mean softmax of {inference['samples']} passes with dropout; costs are of one pass"
    if inference["name"] == "dense-crf":
        return (
            f"dense CRF after the network, {inference['iterations']} iterations, bilateral weight "
            f"{inference['bilateral_weight']:g} ({inference['bilateral_xy_std_px']:g} px, "
            f"{inference['bilateral_rgb_std']:g} of 255), Gaussian weight {inference['gaussian_weight']:g} "
            f"({inference['gaussian_xy_std_px']:g} px); costs are of the network alone"
        )
    return None


def cost_words(usage: Usage) -> str:
    """How times, memory and size were measured."""
    memory = {
        "nvml_process": "device memory of the process (NVML)",
        "nvml_device": "what the device's memory rose by (NVML)",
        "reserved": "reserved by PyTorch's allocator",
        "peak_rss": "peak resident set above the warm process",
    }
    kind = next((words for key, words in memory.items() if usage.memory_mib.get(f"infer_{key}") is not None), None)
    measured = (
        f"memory is {kind}, training (with momentum) at batch {usage.train_memory_batch}, inference at batch "
        f"{usage.infer_memory_batch}"
        if kind
        else "memory was not measured"
    )
    scope = (
        ""
        if usage.scope == "model"
        else (f"; scope {usage.scope}: times and memory include what the model's `input` makes of 8-bit images")
    )
    return (
        f"Costs: {usage.protocol} at {usage.res[0]}x{usage.res[1]}, {usage.precision}; mean of "
        f"{len(usage.forward_ms.measured_ms)} passes at batch {usage.time_batch} (Fwd, Bwd: training network with its "
        f"loss; Infer: evaluation mode); {measured}; size is 4 bytes a parameter, in 10^6 bytes{scope}."
    )


def machine_lines(records: Sequence[Record]) -> list[str]:
    """Where, with what and when each stage ran; one line where that is the same for all of them."""
    by_machine: dict[str, dict[str, None]] = {}
    for record in records:
        stages = {
            "trained": [record.training["environment"]] if record.training else [],
            "scored": [evaluation.environment for evaluation in record.evaluations],
            "timed": [record.profiled_on] if record.profiled_on else [],
        }
        for stage, environments in stages.items():
            for environment in environments:
                by_machine.setdefault(machine_words(environment), {})[stage] = None
    return [f"Machine ({', '.join(stages)}): {words}." for words, stages in by_machine.items()]


def machine_words(environment: dict[str, Any]) -> str:
    """Device, threads, versions, commit (`+`: with changes that were not committed) and date."""
    return (
        f"{environment['device']}, {environment['threads']} CPU threads, torch {environment['libraries']['torch']}, "
        f"segbench {environment['segbench']} ({environment['commit'] or 'no commit'}), {environment['date'][:10]}"
    )
