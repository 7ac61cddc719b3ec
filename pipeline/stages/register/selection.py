"""Choose the best model."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.errors import UserError
from pipeline.core.scores import lower_is_better, task_metrics
from pipeline.core.settings import Register, Task


@dataclass(frozen=True)
class Choice:
    """The chosen model, the metric and score it was chosen for, all candidates, and lines to print.

    `weak` says why the model is not to be registered; it is empty otherwise.
    """

    name: str
    metric: str
    score: float
    candidates: tuple[str, ...]
    lines: list[str]
    weak: str = ""


def choose(scores: Mapping[str, Mapping[str, float]], register: Register, task: Task) -> Choice:
    """Choose the model with the best `register.metric` on validation rows, the first of equals.

    Models without that score are not candidates. A metric of another task is replaced by the headline metric of this
    task, without a minimum. Raises `UserError` if no model has the score.
    """
    headline = f"val.{task_metrics(task)[0]}"
    suits = register.metric.rsplit(".", maxsplit=1)[-1] in task_metrics(task)
    metric, minimum = (register.metric, register.minimum) if suits else (headline, None)
    note = f"note: register.metric {register.metric} is not a metric of {task}: using {headline} without a minimum"
    lines = [] if suits else [note]
    known = {name: found[metric] for name, found in scores.items() if metric in found}
    if not known:
        others = ", ".join(sorted(set().union(*scores.values())))
        raise UserError(f"register.metric must be a score of a model, got {metric}: choose from {others}")
    sign = 1 if lower_is_better(metric) else -1
    best = min(known, key=lambda name: sign * known[name])
    lines += [f"{name}: {metric} {score:.4f}{' (champion)' if name == best else ''}" for name, score in known.items()]
    weak = ""
    if minimum is not None and sign * known[best] > sign * minimum:
        side = f"{'above' if lower_is_better(metric) else 'below'} register.minimum {minimum:g}"
        weak = f"the best {metric}, {known[best]:.4f} of {best}, is {side}: the model is recorded, but not registered"
    return Choice(best, metric, known[best], tuple(known), lines, weak)
