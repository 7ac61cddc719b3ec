"""Copy the best bundle to models/champion/ and register it in MLflow; it becomes the champion, unless in an experiment."""

from pathlib import Path

from pipeline.core import config, files
from pipeline.core.scores import load_scores
from pipeline.networks.bundle import copy_bundle, load_bundle
from pipeline.stages.register.model_card import model_card
from pipeline.stages.register.selection import choose
from pipeline.tracking.identity import experiment
from pipeline.tracking.runs import stage_run

CHAMPION = Path("models/champion")
MODELS = ("train", "search", "finetune")  # the first of equals is chosen


def main() -> None:
    settings = config.load()
    scores = {name: load_scores(Path("reports") / name) for name in MODELS}
    with stage_run("register", settings) as run:
        choice = choose(scores, settings.register_, settings.data.task)
        print(*choice.lines, sep="\n")
        bundle = load_bundle(Path("models") / choice.name)
        copy_bundle(Path("models") / choice.name, CHAMPION)
        card = model_card(bundle, choice, scores[choice.name], load_scores(Path("reports/baseline")), settings)
        files.write_text(CHAMPION / "README.md", card)
        run.log_params(bundle.params)
        run.log_metrics(scores[choice.name])
        run.set_tags({"model": choice.name, "registered": not choice.weak})
        if choice.weak:
            print(choice.weak)
            return
        name, is_experiment = settings.register_.name, bool(experiment())
        run.register(name, CHAMPION, {"model": choice.name}, champion=not is_experiment)
        print(f"{CHAMPION} is models:/{name}@{'challenger' if is_experiment else 'champion'}")
        if is_experiment:
            print("an experiment does not replace the champion: python -m pipeline promote VERSION does")
