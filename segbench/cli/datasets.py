"""`segbench datasets`: what can be trained on, and what of it is here."""

from segbench.cli.options import Data


def datasets(data: Data = None) -> None:
    """List the datasets, with their source and whether they are found on this machine."""
    from rich.console import Console
    from rich.table import Table

    from segbench.data import DATASETS, open_dataset
    from segbench.data.spec import DataSpec
    from segbench.errors import DataError

    table = Table("Name", "Dataset", "Classes", "Source", "Here")
    for name, entry in DATASETS.entries.items():
        classes = str(len(DATASETS.resolve(name).classes))  # type: ignore[attr-defined]
        try:
            found = f"yes, {len(open_dataset(DataSpec(name=name), 'test', data))} test images"
        except DataError:
            found = "no; name its folder with --data or SEGBENCH_DATA"
        table.add_row(name, entry.label, classes, entry.source, found)
    Console().print(table)
