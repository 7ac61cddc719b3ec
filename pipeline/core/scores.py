"""Scores by name: which there are for a task, how they are read and shown."""

import re
from pathlib import Path

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.settings import Task


def task_metrics(task: Task) -> tuple[str, ...]:
    """Names of what is measured for a task; the first is the one a person looks at."""
    return ("rmse", "mae", "r2", "loss") if task == "regression" else ("accuracy", "f1", "auroc", "loss")


def lower_is_better(metric: str) -> bool:
    """Whether a score such as `val.loss` or `val_rmse` is the better the smaller it is."""
    return re.split("[._]", metric)[-1] in ("loss", "rmse", "mae", "ece", "uncalibrated")


def shown(score: float) -> str:
    """A score as a person reads it: four decimals, or three digits where it is too small for them."""
    return f"{score:.4f}" if abs(score) >= 0.001 or score == 0 else f"{score:.3g}"


def significant(value: float) -> float:
    """To 7 digits, what a float32 holds: a target may be measured in millionths."""
    return float(f"{value:.7g}")


def load_scores(folder: Path) -> dict[str, float]:
    path = folder / "metrics.json"
    if not path.exists():
        raise UserError(f"{path} is missing: run dvc repro")
    scores = files.read_json(path)
    if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
        raise UserError(f"{path} holds no scores: run dvc repro")
    return scores
