import numpy as np
import pytest
import torch

from pipeline.training.schedule import lr_factor
from tests.support.members import trained
from tests.support.samples import network, sample, settings

ALL_AT_ONCE = 10_000  # a batch size that makes an epoch one step


def test_cosine_schedule_equals_that_of_torch_at_every_step():
    of, built, epochs = sample("iris"), network(sample("iris"), hidden=()), 12
    fitted = trained(of, built, lr=0.3, epochs=epochs, schedule="cosine", batch_size=ALL_AT_ONCE)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    assert [row["lr"] for row in fitted.history] == pytest.approx(torch_lrs(optimizer, scheduler, epochs))


@pytest.mark.parametrize("warmup", [0.2, 0.3, 0.55, 0.9, 0.95])
@pytest.mark.parametrize("steps", [10, 40, 101])
def test_onecycle_schedule_equals_that_of_torch_at_every_step(warmup, steps):
    train = settings(lr=0.3, schedule="onecycle", warmup=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    found = [train.lr * lr_factor(step, steps, train) for step in range(steps)]
    assert found == pytest.approx(torch_lrs(optimizer, scheduler, steps), rel=1e-6)


def torch_lrs(optimizer, scheduler, steps):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(found) < steps:
            scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_learning_rate_stays_between_zero_and_its_peak(schedule, warmup, steps):
    train = settings(schedule=schedule, warmup=warmup)
    factors = [lr_factor(step, steps, train) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert warmup > 0.9 or max(factors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warmup_rises_in_even_steps_over_its_share_and_then_the_schedule_begins(schedule):
    train = settings(schedule=schedule, warmup=0.2)
    factors = np.array([lr_factor(step, 50, train) for step in range(50)])
    assert np.diff(factors[:11]) == pytest.approx([1 / 11] * 10)
    assert factors[10] == 1
    after = settings(schedule=schedule)
    assert factors[10:] == pytest.approx([lr_factor(step, 40, after) for step in range(40)])
