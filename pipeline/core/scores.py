"""Names of the metrics of each task; reading and formatting of scores."""

import re
from pathlib import Path

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.settings import Task


def task_metrics(task: Task) -> tuple[str, ...]:
    """Names of the metrics of a task; the first is its headline metric."""
    return ("rmse", "mae", "r2", "loss") if task == "regression" else ("accuracy", "f1", "auroc", "loss")


def lower_is_better(metric: str) -> bool:
    """True for errors, such as `val.loss` or `val_rmse`."""
    return re.split("[._]", metric)[-1] in ("loss", "rmse", "mae", "ece", "uncalibrated")


def shown(score: float) -> str:
    """Format a score with four decimals, or with three digits where it is too small for them."""
    return f"{score:.4f}" if abs(score) >= 0.001 or score == 0 else f"{score:.3g}"


def significant(value: float) -> float:
    """Round to 7 significant digits, the precision of float32, so that tiny values keep theirs."""
    return float(f"{value:.7g}")


def load_scores(folder: Path) -> dict[str, float]:
    """Read `metrics.json` of a report; raises `UserError` if it is missing or holds no scores."""
    path = folder / "metrics.json"
    if not path.exists():
        raise UserError(f"{path} is missing: run dvc repro")
    scores = files.read_json(path)
    if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
        raise UserError(f"{path} must map names to scores: run dvc repro")
    return scores
