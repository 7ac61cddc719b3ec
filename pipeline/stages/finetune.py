"""The trained network on the transfer domain: first layers frozen, a smaller learning rate."""

import shutil
from dataclasses import replace
from pathlib import Path

from pipeline import config, console, files, finetuning, training
from pipeline.bundle import load_bundle, save_bundle
from pipeline.data import generator, load_split
from pipeline.model import build_network, describe
from pipeline.tracking import stage_run

FOLDER, TRAINED = Path("models/finetune"), Path("models/train")


def main() -> None:
    settings = config.load()
    device = training.use(settings.device, settings.threads)
    trained = load_bundle(TRAINED)
    target, seed = trained.schema.transfer_target, settings.seed
    with stage_run("finetune", settings) as run:
        if target is None:
            print("data.transfer names no rows: finetune keeps the trained model as it is")
            shutil.copytree(TRAINED, FOLDER, dirs_exist_ok=True)
            files.write_json(FOLDER / "transfer.json", {})
            return
        train, val, test = (load_split("transfer", split).to(device) for split in ("train", "val", "test"))
        network = finetuning.adapt(trained, target, settings.finetune, seed).to(device)
        print(describe(network))
        tuned = finetuning.settings(settings.train, settings.finetune)
        with run.epochs("epoch", tuned.epochs) as on_epoch:
            fitted = training.fit(network, train, val, tuned, target, seed=seed, on_epoch=on_epoch)

        scratch = build_network(trained.model, trained.schema, target.n_outputs, generator(seed)).to(device)
        with console.progress("from scratch", settings.train.epochs) as advance:
            training.fit(scratch, train, val, settings.train, target, seed=seed, on_epoch=lambda row: advance(""))
        compared = {"finetuned": network, "scratch": scratch}
        if target == trained.target:
            compared = {"untouched": trained.network.to(device), **compared}
        scores = {
            f"{name}.{metric}": round(score, 6)
            for name, model in compared.items()
            for metric, score in training.evaluate(model, test, target).items()
        }
        print(
            "on the transfer domain's test rows:",
            *(f"{name} {score:.4f}" for name, score in scores.items()),
            sep="\n  ",
        )

        params = trained.params | config.flatten({"finetune": settings.finetune.model_dump(mode="json")})
        save_bundle(FOLDER, replace(trained, network=network, target=target, params=params), fitted.history)
        files.write_json(FOLDER / "transfer.json", scores)
        run.log_metrics(
            {"best.epoch": fitted.best_epoch, **{f"transfer.{name}": score for name, score in scores.items()}}
        )
        run.log_model(FOLDER)


if __name__ == "__main__":
    console.run(main)
