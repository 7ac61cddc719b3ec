"""Select the champion."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.errors import UserError
from pipeline.core.scores import lower_is_better, task_metrics
from pipeline.core.settings import Register, Task


@dataclass(frozen=True)
class Choice:
    """The selected model, the metric and its score, and lines that compare all models."""

    name: str
    metric: str
    score: float
    candidates: list[str]
    lines: list[str]


def choose(scores: Mapping[str, Mapping[str, float]], register: Register, task: Task) -> Choice:
    """Select the model with the best `register.metric` on validation rows, the first one of equals.

    A metric of another task is replaced by the headline metric of the task, without a minimum. Models without the metric,
    such as `finetune` without a transfer domain, are skipped. Raises `UserError` if the best one is worse than
    `register.minimum`.
    """
    metric: str = register.metric
    minimum: float | None = register.minimum
    lines = []
    if metric.rsplit(".", maxsplit=1)[-1] not in task_metrics(task):
        lines.append(
            f"note: register.metric {metric} does not suit {task}: val.{task_metrics(task)[0]} is used instead, without a minimum"
        )
        metric, minimum = f"val.{task_metrics(task)[0]}", None
    known = {name: found[metric] for name, found in scores.items() if metric in found}
    if not known:
        raise UserError(
            f"register.metric must be a metric of some model, got {metric}; known: {', '.join(sorted(set().union(*scores.values())))}"
        )
    sign = 1 if lower_is_better(metric) else -1
    best = min(known, key=lambda name: sign * known[name])
    lines += [f"{name}: {metric} {score:.4f}{' (champion)' if name == best else ''}" for name, score in known.items()]
    if minimum is not None and sign * known[best] > sign * minimum:
        side = "above" if lower_is_better(metric) else "below"
        raise UserError(
            f"register: the best {metric}, {known[best]:.4f} of {best}, is {side} register.minimum {minimum:g}; nothing was registered"
        )
    return Choice(best, metric, known[best], list(known), lines)
