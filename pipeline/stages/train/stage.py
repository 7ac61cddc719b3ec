"""Train the network of `model`, or an ensemble of it, on the source domain."""

from pathlib import Path

import pandas as pd

from pipeline.core import config, files
from pipeline.networks.build import describe, parameters
from pipeline.networks.bundle import save_bundle
from pipeline.networks.device import use
from pipeline.stages.train import overfit
from pipeline.tables.prepared import load_prepared, load_split
from pipeline.tracking.identity import state
from pipeline.tracking.runs import stage_run
from pipeline.training import checkpoints, loop
from pipeline.training.calibration import fitted_bundle

FOLDER = Path("models/train")


def main() -> None:
    settings = config.load()
    device = use(settings.device, settings.threads)
    schema, preprocessor = load_prepared()
    target = schema.target
    train, val = (load_split("source", split).to(device) for split in ("train", "val"))
    settings = settings.sized(len(train))
    members = loop.new_members(settings, train, schema)
    network = members[0].network
    with checkpoints.opened(*state("train")) as saved, stage_run("train", settings) as run:
        print(describe(network))
        files.write_csv(FOLDER / "parameters.csv", parameters(network))
        run.log_metrics({"parameters.total": len(members) * int(parameters(network)["total"].sum())})

        steps = overfit.overfit_check(network, train, settings.train, target, seed=settings.seed)
        files.write_csv(FOLDER / "overfit.csv", pd.DataFrame(steps, columns=["epoch", "train_loss", "val_loss"]))
        run.log_epochs(steps, prefix="overfit/")

        with run.epochs("epoch", settings.train.n_epochs) as on_epoch:
            loop.fit(members, train, val, target, on_epoch=saved.resume("network", members, on_epoch))
        bundle = fitted_bundle(members, settings, schema, preprocessor, val)
        scores = {name: loop.evaluate(bundle.members, rows, target) for name, rows in (("train", train), ("val", val))}
        best = ", ".join(str(member.best_epoch) for member in members)
        print(f"best epoch {best}: {overfit.describe_gap(scores['train'], scores['val'])}")

        save_bundle(FOLDER, bundle, loop.mean_history(members))
        run.log_metrics({f"best.{name}.{metric}": s for name in scores for metric, s in scores[name].items()})
        gap = scores["val"]["loss"] - scores["train"]["loss"]
        run.log_metrics({"best.epoch": members[0].best_epoch, "best.gap": gap, "temperature": bundle.temperature})
        run.log_files(FOLDER / "parameters.csv", FOLDER / "overfit.csv")
        run.log_model(FOLDER)
