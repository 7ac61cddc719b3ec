"""Parse the command line of `python -m pipeline` and call the command. Slow imports wait until a command needs them."""

import argparse
from pathlib import Path

from pipeline.commands.adopt import adopt
from pipeline.commands.doctor.checks import doctor
from pipeline.commands.predict import predict
from pipeline.commands.promote import promote
from pipeline.commands.show import show
from pipeline.runtime import console


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Use, inspect and share what the stages produced. The stages themselves run with dvc repro.",
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")

    command = commands.add_parser("predict", help="predict labels and probabilities for the rows of a table")
    command.add_argument("model", type=_path, help="a bundle, such as models/champion")
    command.add_argument("table", help="a path or URL: .csv .tsv .parquet, also .gz .bz2 .xz .zip")
    command.add_argument("-o", "--output", type=_path, required=True, help="a .parquet or .csv file")

    command = commands.add_parser("adopt", help="write the best parameters of the search to params.yaml")
    patch = Path("models/search/best_params.yaml")
    command.add_argument("patch", type=_path, nargs="?", default=patch, help=f"a YAML file (default: {patch})")

    commands.add_parser("show", help="show the test scores of every model")

    command = commands.add_parser("verify", help="rebuild every stage in a temporary clone and compare with dvc.lock")
    command.add_argument("--stage", metavar="NAME", help="verify only this stage, such as train or evaluate@train")

    commands.add_parser("doctor", help="diagnose the project and suggest a fix for each problem")

    command = commands.add_parser("ui", help="start the MLflow UI for the runs of this project")
    command.add_argument("--port", type=int, default=5000, help="on 127.0.0.1 (default: 5000)")

    command = commands.add_parser("promote", help="give a version of the registered model the alias champion")
    command.add_argument("version", type=int, help="the number of the version in the MLflow registry")

    command = commands.add_parser("sync", help="send unsent runs to MLflow and restore missing ones from DVC")
    command.add_argument("--all-commits", action="store_true", help="also from branches, tags and DVC experiments")

    arguments = parser.parse_args()
    console.run(lambda: _call(arguments))


def _path(text: str) -> Path:
    if "://" in text:  # not repeated in the message: it may hold a secret
        raise argparse.ArgumentTypeError("must be a path, not a URL")
    return Path(text)


def ui(port: int) -> None:
    from pipeline.core import config
    from pipeline.tracking import store

    store.serve(config.load().tracking, port)


def _call(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "predict":
            predict(arguments.model, arguments.table, arguments.output)
        case "adopt":
            adopt(arguments.patch)
        case "show":
            show()
        case "verify":
            from pipeline.commands.verify import report

            report(arguments.stage)
        case "doctor":
            doctor()
        case "ui":
            ui(arguments.port)
        case "promote":
            promote(arguments.version)
        case "sync":
            from pipeline.commands.sync import sync

            sync(arguments.all_commits)
