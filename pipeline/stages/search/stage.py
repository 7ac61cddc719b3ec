"""Search hyperparameters with Optuna, then train the best trial in full."""

from pathlib import Path

from pipeline.core import config, files
from pipeline.networks.bundle import save_bundle
from pipeline.networks.device import use
from pipeline.runtime import console
from pipeline.stages.search import figures
from pipeline.stages.search.study import search
from pipeline.stages.search.trials import Trial, Work
from pipeline.stages.search.workers import workers
from pipeline.tables.prepared import load_prepared, load_split
from pipeline.tracking.identity import state
from pipeline.tracking.runs import stage_run
from pipeline.training import checkpoints, loop
from pipeline.training.calibration import fitted_bundle

FOLDER = Path("models/search")


def main() -> None:
    settings = config.load()
    device = use(settings.device, settings.threads)
    schema, preprocessor = load_prepared()
    target = schema.target
    train, val = (load_split("source", split).to(device) for split in ("train", "val"))
    unsized, settings = settings, settings.sized(len(train))
    with (
        checkpoints.opened(*state("search")) as saved,
        workers(Work.of(train, val, schema, settings, saved), settings.search.workers) as runner,
        stage_run("search", settings) as run,
    ):
        with console.progress("trial", settings.search.n_trials) as advance:

            def on_trial(trial: Trial) -> None:
                run.log_trial(trial.number, trial.params, trial.state, trial.history)
                advance(trial.line())

            found = search(unsized, runner, on_trial, lambda config: config.sized(len(train)))

        best = config.replaced(unsized, found.best.params).sized(len(train))
        print(f"best {found.best.line()}; trained in full:")
        members = loop.new_members(best, train, schema)
        with run.epochs("epoch", best.train.n_epochs) as on_epoch:
            loop.fit(members, train, val, target, on_epoch=saved.resume("best", members, on_epoch))

        bundle = fitted_bundle(members, best, schema, preprocessor, val)
        save_bundle(FOLDER, bundle, loop.mean_history(members))
        log = {name for name, space in settings.search.space.items() if space.log}
        files.write_csv(FOLDER / "trials.csv", found.table())
        files.write_text(FOLDER / "best_params.yaml", config.dump_yaml(config.nest(found.best.params)))
        figures.save_search(FOLDER, found.table(), found.best_so_far(), found.importances, log)
        scores = {f"best.val.{name}": score for name, score in loop.evaluate(bundle.members, val, target).items()}
        run.log_metrics(scores | {"best.epoch": members[0].best_epoch, "temperature": bundle.temperature})
        run.log_files(*(FOLDER / name for name in ("trials.csv", "best_params.yaml")), *FOLDER.glob("*.png"))
        run.log_model(FOLDER)
