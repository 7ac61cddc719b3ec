"""A named source to data/raw/: the table as read."""

from pipeline import config, console, datasets
from pipeline.settings import without_secret
from pipeline.tracking import stage_run


def main() -> None:
    settings = config.load()
    data = settings.data
    sources = {datasets.RAW_TABLE: data.source}
    if data.transfer is not None and data.transfer.source is not None:
        sources[datasets.RAW_TRANSFER] = data.transfer.source
    with stage_run("fetch", settings) as run:
        for path, source in sources.items():
            table = datasets.read(source, data.csv)
            datasets.save_raw(table, path)
            print(f"{without_secret(source)}: {len(table):,} rows, {len(table.columns):,} columns")
            run.log_metrics({f"{path.stem}.rows": len(table), f"{path.stem}.columns": len(table.columns)})


if __name__ == "__main__":
    console.run(main, "fetch")
