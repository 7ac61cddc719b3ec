"""Commands that are not stages: `python -m pipeline predict | adopt | show | verify | doctor | ui | sync`."""

import argparse
import os
import sys
from pathlib import Path

from pipeline.commands.adopt import adopt
from pipeline.commands.predict import predict
from pipeline.commands.show import show
from pipeline.runtime import console


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


def verify(stage: str | None) -> None:
    """A table by stage: identical, or each file that differs and by how much; exit status 1 unless all is identical."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.commands.verify import verify

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
    from pipeline.commands.doctor.checks import examine

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
    from pipeline.core import config
    from pipeline.tracking import store

    store.serve(config.load().tracking, port)


def sync(all_commits: bool) -> None:
    from pipeline.commands.sync import sync

    sync(all_commits)
