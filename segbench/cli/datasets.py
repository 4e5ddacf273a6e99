"""`segbench datasets`: what can be trained on, and what of it is here."""

from segbench.cli.options import Data


def datasets(data: Data = None) -> None:
    """List the datasets and which are here."""
    from segbench.data import DATASETS, open_dataset
    from segbench.data.spec import DataSpec
    from segbench.errors import DataError
    from segbench.report import render
    from segbench.report.table import Table

    rows = []
    for name, entry in DATASETS.entries.items():
        classes = str(len(DATASETS.resolve(name).classes))  # type: ignore[attr-defined]
        try:
            found = f"yes, {len(open_dataset(DataSpec(name=name), 'test', data))} test images"
        except DataError:
            found = "no; name its folder with --data or SEGBENCH_DATA"
        rows.append([name, entry.label, classes, entry.source, found])
    columns = ["Name", "Dataset", "Classes", "Source", "Here"]
    render.show(Table("Datasets", columns, rows, left=len(columns)))
