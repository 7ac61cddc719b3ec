"""Commands that are not stages: `python -m pipeline predict | adopt | show | verify | doctor | ui | sync`."""

# What a command needs is imported inside it: the doctor has to work where little else does.
import argparse
import os
import sys
from pathlib import Path

from pipeline import console
from pipeline.errors import UserError, printable

ROWS = 65_536  # predicted at a time


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("predict", help="label and probabilities for the rows of a raw table")
    command.add_argument("model", type=_path, help="a bundle, such as models/champion")
    command.add_argument("table", help="a path or URL: .csv .tsv .parquet, also .gz .bz2 .xz .zip")
    command.add_argument("-o", "--output", type=_path, required=True, help="a .parquet or .csv file")
    command.set_defaults(call=lambda a: predict(a.model, a.table, a.output))

    command = commands.add_parser("adopt", help="write the best parameters of the search into params.yaml")
    command.add_argument("patch", type=_path, nargs="?", default=Path("models/search/best_params.yaml"))
    command.set_defaults(call=lambda a: adopt(a.patch))

    command = commands.add_parser("show", help="what each model is worth, and where to look next")
    command.set_defaults(call=lambda a: show())

    command = commands.add_parser("verify", help="rebuild every stage in a temporary clone; its bytes beside dvc.lock")
    command.add_argument("--stage", metavar="NAME", help="only this one, such as train or evaluate@train")
    command.set_defaults(call=lambda a: verify(a.stage))

    command = commands.add_parser("doctor", help="what is wrong here, and what to type against it")
    command.set_defaults(call=lambda a: doctor())

    command = commands.add_parser("ui", help="the MLflow UI on this project's runs")
    command.add_argument("--port", type=int, default=5000)
    command.set_defaults(call=lambda a: ui(a.port))

    command = commands.add_parser(
        "sync", help="send what waits for MLflow, and rebuild the runs that it lacks from DVC"
    )
    command.add_argument("--all-commits", action="store_true", help="also of branches, tags and DVC experiments")
    command.set_defaults(call=lambda a: sync(a.all_commits))

    arguments = parser.parse_args()
    console.run(lambda: arguments.call(arguments))


def _path(text: str) -> Path:
    if "://" in text:  # not repeated: it may hold a secret
        raise argparse.ArgumentTypeError("must be a path, not a URL")
    return Path(text)


def predict(model: Path, table: str, output: Path) -> None:
    """Read raw columns, write `prediction` and the probabilities, a row each and in their order."""
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"--output must end in .parquet or .csv, got {output}")
    if "://" not in table and not Path(table).is_file():
        raise UserError(f"{table} is no file: predict takes a path or a URL")
    import pandas as pd

    from pipeline import config, datasets, files, schema
    from pipeline.bundle import load_bundle
    from pipeline.settings import Csv, without_secret

    bundle = load_bundle(model)
    raw = datasets.read_file(table, Csv() if not config.PATH.exists() else config.load().data.csv)
    checked = schema.check(raw, bundle.schema, without_secret(table))
    for column, counts in schema.unseen(checked, bundle.schema).items():
        values = ", ".join(repr(value) for value in counts.index[:3]) + (", …" if len(counts) > 3 else "")
        print(
            f"{printable(column)}: {counts.sum():,} rows hold values that training never saw ({values}); used as unseen"
        )
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


def adopt(patch: Path) -> None:
    """Show each parameter that changes, and change it."""
    from pipeline import config

    if not patch.exists():
        raise UserError(f"{patch} is missing: run dvc repro search")
    for name, (old, new) in config.adopt(config.read_yaml(patch)).items():
        print(f"{name}: {old} -> {new}" if old != new else f"{name}: {old}, as it was")


def show() -> None:
    """A table of the models' test scores on both domains, read from reports/."""
    from rich.console import Console
    from rich.table import Table

    from pipeline import config
    from pipeline.evaluation import load_scores
    from pipeline.metrics import shown
    from pipeline.settings import task_metrics

    settings = config.load()
    metric = task_metrics(settings.data.task)[0]
    columns = [f"{domain}.{name}" for domain in ("test", "transfer") for name in (metric, "loss")]
    table = Table("model", *columns)
    rows = {name: load_scores(Path("reports") / name) for name in ("baseline", "train", "search", "finetune")}
    rows["trees"] = rows["baseline"]
    rows["constant"] = {
        key.removeprefix("constant."): value
        for key, value in rows.pop("baseline").items()
        if key.startswith("constant.")
    }
    for name, scores in rows.items():
        table.add_row(name, *(shown(scores[column]) if column in scores else "-" for column in columns))
    out = Console()
    out.print(table)
    out.print(
        "Next: make ui (compare runs), dvc plots show, reports/*/*.png, models/champion/README.md", highlight=False
    )


def verify(stage: str | None) -> None:
    """A table by stage: identical, or each file that differs and by how much; exit status 1 unless all is identical."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.verify import verify

    verdicts = verify(stage)
    table = Table("stage", "file", "difference")
    for verdict in verdicts:
        for place, (file, how) in enumerate(verdict.lines or [("", verdict.text)]):
            table.add_row(*map(Text, ("" if place else verdict.stage, file, how)))
    Console().print(table)
    same = sum(verdict.identical for verdict in verdicts)
    print(f"{same} of {len(verdicts)} stages identical")
    if same < len(verdicts):
        raise SystemExit(1)


def doctor() -> None:
    """A line a check, and below it what is wrong and the remedy; ends with status 1 if anything is."""
    from pipeline.doctor import examine

    green, red, plain = ("\033[32m", "\033[31m", "\033[0m") if _coloured() else ("", "", "")
    n_wrong = 0
    for name, findings in examine():
        print(f"{red}wrong{plain}" if findings else f"{green}ok{plain}   ", name, flush=True)
        for finding in findings:
            print(f"      {finding.what}\n      remedy: {finding.remedy}", flush=True)
        n_wrong += len(findings)
    print("all is well" if n_wrong == 0 else f"to be mended: {n_wrong}")
    if n_wrong:
        raise SystemExit(1)


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def ui(port: int) -> None:
    from pipeline import config, delivery

    delivery.serve(config.load().tracking, port)


def sync(all_commits: bool) -> None:
    from pipeline.sync import sync

    sync(all_commits)
