"""`python -m pipeline predict`."""

from pathlib import Path

from pipeline.core.errors import UserError, printable
from pipeline.runtime import console

ROWS = 65_536  # per batch


def predict(model: Path, table: str, output: Path) -> None:
    """Read raw columns; write `prediction` and the probabilities, one row for each row of the table, in its order."""
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"--output must end in .parquet or .csv, got {output}")
    if "://" not in table and not Path(table).is_file():
        raise UserError(f"table must be a file or a URL, got {table}")
    import pandas as pd

    from pipeline.core import config, files
    from pipeline.core.secrets import without_secret
    from pipeline.core.settings import Csv
    from pipeline.networks.bundle import load_bundle
    from pipeline.sources import readers
    from pipeline.tables import validation

    bundle = load_bundle(model)
    options = config.load().data.csv if config.PATH.exists() else Csv()
    # The lines to skip are those of the training table.
    raw = readers.read_file(table, options.model_copy(update={"skip": 0}))
    checked = validation.check(raw, bundle.schema, without_secret(table))
    for column, counts in validation.unseen(checked, bundle.schema).items():
        values = ", ".join(repr(value) for value in counts.index[:3]) + (", …" if len(counts) > 3 else "")
        n_rows = f"{counts.sum():,} of {len(raw):,} rows"
        print(f"{printable(column)}: {n_rows} have a category unseen in training ({values})")
    parts = []
    starts = range(0, len(raw), ROWS)
    with console.progress("predict", len(starts)) as advance:
        for start in starts:
            parts.append(bundle.predict_checked(checked.iloc[start : start + ROWS]))
            advance("")
    predictions = pd.concat(parts, ignore_index=True)
    if output.suffix == ".csv":
        files.write_csv(output.absolute(), predictions)
    else:
        with files.replacing(output.absolute()) as path:
            predictions.to_parquet(path, index=False)
    print(f"{output}: {len(predictions):,} predictions")
