"""The network of `model`, trained on the source domain as `train` says."""

from pathlib import Path

import pandas as pd

from pipeline import config, console, files, training
from pipeline.bundle import Bundle, save_bundle
from pipeline.data import generator, load_split
from pipeline.model import build_network, describe, parameters
from pipeline.preparation import load_prepared
from pipeline.tracking import stage_run

FOLDER = Path("models/train")


def main() -> None:
    settings = config.load()
    device = training.use(settings.device, settings.threads)
    learned, preprocessor = load_prepared()
    target = learned.target
    train, val = (load_split("source", split).to(device) for split in ("train", "val"))
    network = build_network(settings.model, learned, target.n_outputs, generator(settings.seed)).to(device)
    with stage_run("train", settings) as run:
        print(describe(network))
        files.write_csv(FOLDER / "parameters.csv", pd.DataFrame(parameters(network)))
        run.log_metrics({"parameters.total": sum(p.total for p in parameters(network))})

        by_heart = training.overfit_check(network, train, settings.train, target, seed=settings.seed)
        files.write_csv(FOLDER / "overfit.csv", pd.DataFrame(by_heart, columns=["epoch", "train_loss", "val_loss"]))
        run.log_epochs(by_heart, prefix="overfit/")

        with run.epochs("epoch", settings.train.epochs) as on_epoch:
            fitted = training.fit(network, train, val, settings.train, target, seed=settings.seed, on_epoch=on_epoch)
        scores = {name: training.evaluate(network, rows, target) for name, rows in (("train", train), ("val", val))}
        print(f"best epoch {fitted.best_epoch}: {training.gap(scores['train'], scores['val'])}")

        params = config.flatten({"seed": settings.seed, **settings.model_dump(mode="json", include={"model", "train"})})
        save_bundle(FOLDER, Bundle(network, settings.model, learned, target, preprocessor, params), fitted.history)
        run.log_metrics({f"best.{name}.{metric}": s for name in scores for metric, s in scores[name].items()})
        run.log_metrics({"best.epoch": fitted.best_epoch, "best.gap": scores["val"]["loss"] - scores["train"]["loss"]})
        run.log_files(FOLDER / "parameters.csv", FOLDER / "overfit.csv")
        run.log_model(FOLDER)


if __name__ == "__main__":
    console.run(main)
