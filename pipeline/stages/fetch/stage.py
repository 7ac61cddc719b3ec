"""Read the source tables into data/raw/."""

from pipeline.core import config
from pipeline.core.secrets import without_secret
from pipeline.sources import readers
from pipeline.tables import raw
from pipeline.tracking.runs import stage_run


def main() -> None:
    settings = config.load()
    data, sources = settings.data, {raw.RAW_TABLE: settings.data.source}
    if data.transfer is not None and data.transfer.source is not None:
        sources[raw.RAW_TRANSFER] = data.transfer.source
    with stage_run("fetch", settings) as run:
        for path, source in sources.items():
            table = readers.read(source, data.csv)
            raw.save_raw(table, path)
            print(f"{without_secret(source)}: {len(table):,} rows, {len(table.columns):,} columns")
            run.log_metrics({f"{path.stem}.rows": len(table), f"{path.stem}.columns": len(table.columns)})
