"""Fine-tune the trained network on the transfer domain, and compare it with training from scratch."""

from dataclasses import replace
from pathlib import Path

from pipeline.core import config, files
from pipeline.core.scores import significant
from pipeline.networks.build import describe
from pipeline.networks.bundle import copy_bundle, load_bundle, save_bundle
from pipeline.networks.device import use
from pipeline.runtime import console
from pipeline.stages.finetune import adapt
from pipeline.tables.prepared import load_split
from pipeline.tables.tensors import check_fit
from pipeline.tracking.identity import state
from pipeline.tracking.runs import stage_run
from pipeline.training import checkpoints, loop
from pipeline.training.calibration import calibrated

FOLDER, TRAINED = Path("models/finetune"), Path("models/train")


def main() -> None:
    settings = config.load()
    device = use(settings.device, settings.threads)
    trained = load_bundle(TRAINED)
    target = trained.schema.transfer_target
    with checkpoints.opened(*state("finetune")) as saved, stage_run("finetune", settings) as run:
        if target is None:
            print("no transfer domain: finetune copies the trained model")
            copy_bundle(TRAINED, FOLDER)
            files.write_json(FOLDER / "transfer.json", {})
            return
        splits = {split: load_split("transfer", split) for split in ("train", "val", "test")}
        for split, data in splits.items():
            check_fit(data, trained.schema, f"data/prepared/transfer/{split}.safetensors")
        train, val, test = (data.to(device) for data in splits.values())
        settings = settings.sized(len(train))
        tuned = adapt.members(trained, target, settings, device)
        print(describe(tuned[0].network))
        with run.epochs("epoch", settings.finetune.epochs) as on_epoch:
            loop.fit(tuned, train, val, target, on_epoch=saved.resume("tuned", tuned, on_epoch))

        scratch = adapt.from_scratch(trained, target, settings, device)
        with console.progress("from scratch", settings.train.n_epochs) as advance:
            resumed = saved.resume("scratch", scratch, lambda row: advance(""))
            loop.fit(scratch, train, val, target, on_epoch=resumed)
        compared = {"finetuned": [member.fitted for member in tuned], "scratch": [member.fitted for member in scratch]}
        if target == trained.target:
            compared = {"untouched": [network.to(device) for network in trained.members], **compared}
        scores = {
            f"{name}.{metric}": significant(score)
            for name, networks in compared.items()
            for metric, score in loop.evaluate(networks, test, target).items()
        }
        print("scores on the test rows of the transfer domain:")
        for name, score in scores.items():
            print(f"  {name} {score:.4g}")

        params = trained.params | config.flatten(settings.model_dump(mode="json", include={"train", "finetune"}))
        bundle = replace(trained, members=tuple(compared["finetuned"]), target=target, params=params, temperature=1.0)
        if settings.train.calibration:
            bundle = calibrated(bundle, val)
        save_bundle(FOLDER, bundle, loop.mean_history(tuned))
        files.write_json(FOLDER / "transfer.json", scores)
        run.log_metrics({f"transfer.{name}": score for name, score in scores.items()})
        run.log_metrics({"best.epoch": tuned[0].best_epoch, "temperature": bundle.temperature})
        run.log_model(FOLDER)
