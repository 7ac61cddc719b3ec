import copy

import numpy as np
import pytest
import torch

from pipeline.networks import losses
from pipeline.networks.device import generator
from pipeline.networks.stack import Stack
from tests.support.members import trained
from tests.support.samples import network, sample

ALL_AT_ONCE = 10_000  # a batch size that makes an epoch one step


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "wine"])
def test_mixup_equals_training_on_mixed_inputs(name):
    of, seed = sample(name), 7
    built = network(of, hidden=(6,), dropout=0.0)
    by_hand = copy.deepcopy(built)
    trained(of, built, seed=seed, lr=0.1, epochs=1, batch_size=ALL_AT_ONCE, augment={"mixup": 0.4})

    share = float(np.random.default_rng((seed, 1, 2)).beta(0.4, 0.4, 1)[0])
    order = torch.randperm(len(of.train), generator=generator(seed, 1))
    partner = torch.randperm(len(of.train), generator=generator(seed, 1, 1))
    x, y = of.train.x_num[order], of.train.y[order]
    outputs = by_hand((share * x + (1 - share) * x[partner], of.train.x_cat))
    parts = [losses.loss(outputs, goal, of.target.task) for goal in (y, y[partner])]
    (share * parts[0] + (1 - share) * parts[1]).backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.1).step()
    for mine, reference in zip(built.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.fixture
def seen_in_training(monkeypatch):
    """The inputs of a stack in training, and the original rows."""
    seen, forward = [], Stack.__call__

    def recording(stack, x_num, x_cat, *rest):
        if not seen:  # and not the validation rows after them
            seen.append((x_num[0], x_cat[0]))
        return forward(stack, x_num, x_cat, *rest)

    monkeypatch.setattr(Stack, "__call__", recording)

    def run(of, **augment):
        trained(of, network(of), seed=1, epochs=1, batch_size=ALL_AT_ONCE, augment=augment)
        order = torch.randperm(len(of.train), generator=generator(1, 1))
        return of.train.take(order), *seen

    return run


def test_swapped_cells_come_from_the_same_column_and_are_about_the_share_asked_for(seen_in_training):
    given, (x_num, x_cat) = seen_in_training(sample("mixed"), swap=0.3)
    for before, after in ((given.x_num, x_num), (given.x_cat, x_cat)):
        assert before.dtype == after.dtype
        for column in range(before.shape[1]):
            assert torch.isin(after[:, column], before[:, column]).all()
    changed = float((given.x_num[:, :2] != x_num[:, :2]).float().mean())  # numbers, which seldom repeat
    assert changed == pytest.approx(0.3, abs=0.08)


def test_noise_has_the_standard_deviation_asked_for_and_leaves_categories_alone(seen_in_training):
    given, (x_num, x_cat) = seen_in_training(sample("mixed"), noise=0.2)
    assert float((x_num - given.x_num).std()) == pytest.approx(0.2, rel=0.1)
    assert float((x_num - given.x_num).mean()) == pytest.approx(0, abs=0.03)
    assert torch.equal(x_cat, given.x_cat)


def test_without_augmentation_the_network_sees_the_rows_as_they_are(seen_in_training):
    given, (x_num, x_cat) = seen_in_training(sample("mixed"))
    assert torch.equal(x_num, given.x_num)
    assert torch.equal(x_cat, given.x_cat)
