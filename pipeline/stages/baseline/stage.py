"""Score gradient-boosted trees and a constant prediction, fitted on the training rows of the network."""

from pathlib import Path

import pandas as pd
import torch

from pipeline.core import config
from pipeline.core.scores import task_metrics
from pipeline.evaluation import report
from pipeline.stages.baseline.trees import Trees, constant_outputs
from pipeline.tables import validation
from pipeline.tables.prepared import domains, load_prepared, load_rows, load_split
from pipeline.tables.raw import load_raw
from pipeline.tracking.runs import stage_run

REPORT = Path("reports/baseline")


def main() -> None:
    settings = config.load()
    torch.set_num_threads(settings.threads)  # the last digits of the metrics depend on it
    learned, _ = load_prepared()
    target, y = learned.target, load_split("source", "train").y
    tables = {domain: validation.check(load_raw(domain), learned, domain) for domain in domains()}

    def rows(domain: str, split: str) -> pd.DataFrame:
        return tables[domain].iloc[load_rows(domain, split)]

    with stage_run("baseline", settings) as run:
        trees = Trees(rows("source", "train"), y.numpy(), learned, target, seed=settings.seed, threads=settings.threads)
        result = report.evaluate(lambda *part: trees.outputs(rows(*part)), target, learned)
        constant = report.evaluate(lambda *part: constant_outputs(y, len(rows(*part)), target), target, learned)
        headlines = (task_metrics(target.task)[0], "loss")
        result.scores.update({f"constant.{k}": v for k, v in constant.scores.items() if k.split(".")[-1] in headlines})
        report.save(REPORT, result)
        run.log_metrics(result.scores)
        run.log_files(REPORT)
        print(report.summary("trees", result.scores), report.summary("constant", constant.scores), sep="\n")
