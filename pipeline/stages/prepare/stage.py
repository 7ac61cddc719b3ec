"""Write data/prepared/: schema, splits, and a preprocessor fitted on training rows; and the data card."""

from pipeline.core import config, files
from pipeline.stages.prepare import data_card
from pipeline.stages.prepare.data_card import DATA_CARD
from pipeline.stages.prepare.preparation import describe, prepare
from pipeline.tables.prepared import PREPARED
from pipeline.tables.raw import RAW_TRANSFER, load_raw
from pipeline.tracking.runs import stage_run


def main() -> None:
    settings = config.load()
    with stage_run("prepare", settings) as run:
        second = load_raw("transfer", with_total=True) if RAW_TRANSFER.exists() else None
        prepared = prepare(load_raw(with_total=True), second, settings.data, settings.seed)
        files.write_text(DATA_CARD, data_card.render(prepared, settings.data))
        prepared.save()
        print(describe(prepared.schema))
        run.log_metrics({f"rows.{name}": n for name, n in prepared.schema.rows.items()})
        run.log_files(PREPARED / "schema.json", DATA_CARD)
