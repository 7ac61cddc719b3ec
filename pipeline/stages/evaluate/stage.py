"""A model on the test rows of both domains: train, finetune or search, named on the command line."""

import sys
from pathlib import Path

from pipeline.core import config
from pipeline.evaluation import report
from pipeline.networks import device
from pipeline.networks.bundle import load_bundle
from pipeline.runtime import console
from pipeline.tables.prepared import load_split
from pipeline.tracking.runs import stage_run


def main() -> None:
    model = sys.argv[1]
    settings = config.load()
    device.use("cpu", settings.threads)
    bundle = load_bundle(Path("models") / model)
    folder = Path("reports") / model
    with stage_run(f"evaluate@{model}", settings, tags={"model": model}) as run:
        judged = report.evaluate(
            lambda *part: bundle.outputs(load_split(*part)), bundle.target, bundle.schema, bundle.temperature
        )
        report.save(folder, judged)
        run.log_params(bundle.params)
        run.log_metrics(judged.scores)
        run.log_files(folder)
        print(report.summary(model, judged.scores))


if __name__ == "__main__":
    console.run(main, f"evaluate@{sys.argv[1]}")
