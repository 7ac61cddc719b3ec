"""Score a model on the validation and test rows of both domains."""

from pathlib import Path

from pipeline.core import config
from pipeline.evaluation import report
from pipeline.networks import device
from pipeline.networks.bundle import load_bundle
from pipeline.tables.prepared import load_split
from pipeline.tracking.runs import stage_run


def main(model: str) -> None:
    """Evaluate the model of the stage `model`: train, finetune or search."""
    settings = config.load()
    device.use("cpu", settings.threads)
    bundle = load_bundle(Path("models") / model)
    folder = Path("reports") / model
    with stage_run(f"evaluate@{model}", settings, tags={"model": model}) as run:
        if model == "finetune" and bundle.schema.transfer_target is None:
            result = report.Report({}, {})
            print("finetune: no transfer domain, so there is no fine-tuned model to score")
        else:
            described = bundle.target, bundle.schema, bundle.temperature
            result = report.evaluate(lambda *part: bundle.outputs(load_split(*part)), *described)
            print(report.summary(model, result.scores))
            run.log_params(bundle.params)
        report.save(folder, result)
        run.log_metrics(result.scores)
        run.log_files(folder)
