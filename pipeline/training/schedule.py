"""Learning rate schedules."""

import math

from pipeline.core.settings import Train

ONECYCLE_START, ONECYCLE_END = 1 / 25, 1e-4  # first rate / peak rate, last rate / first rate


def lr_factor(step: int, steps: int, settings: Train) -> float:
    """Return the learning rate of `step`, 0 to `steps` - 1, as a share of `lr`.

    constant and cosine (Loshchilov & Hutter 2017, eq. 5) rise linearly during the first `warmup` share of the steps;
    onecycle (Smith & Topin 2018, with cosine arms as in torch's OneCycleLR) reaches its peak there.
    """
    last = max(steps - 1, 1)
    if settings.schedule == "onecycle":
        peak = max(settings.warmup * steps - 1, 0)
        if step < peak:
            return _cosine_arm(ONECYCLE_START, 1.0, step / peak)
        return _cosine_arm(1.0, ONECYCLE_START * ONECYCLE_END, (step - peak) / (last - peak) if last > peak else 0.0)
    rising = settings.warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if settings.schedule == "cosine":
        return _cosine_arm(1.0, 0.0, (step - rising) / max(steps - rising, 1))
    return 1.0


def _cosine_arm(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
