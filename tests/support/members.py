"""Members of a stack: made, trained, and compared."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.tables.tensors import TabularData
from pipeline.training.loop import Member
from tests.support import samples
from tests.support.samples import settings

SHAPES = pytest.mark.parametrize(
    "model",
    [
        {"numeric": numeric, "categories": categories, "hidden": hidden}
        for numeric in ("plain", "ple", "plr")
        for categories in ("onehot", "embedding")
        for hidden in ((), (7, 5))
    ],
    ids=lambda model: f"{model['numeric']}-{model['categories']}-{len(model['hidden'])}",
)
ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "selu")


def double(data):
    return TabularData(data.x_num.double(), data.x_cat, data.y if data.y.dtype == torch.int64 else data.y.double())


def members_of(of, kinds, model, dtype=torch.float64):
    """A member for each of `kinds`: a seed, a dropout, and settings that members of a stack may differ in."""
    members = []
    for seed, dropout, own in kinds:
        built = samples.network(of, seed, **{"hidden": (7, 5), "bins": 8, **model, "dropout": dropout}).to(dtype)
        settings = samples.settings(**{"epochs": 4, "lr": 0.05, **own})
        members.append(Member(built, settings, seed))
    return members


KINDS = [
    (3, 0.0, {"lr": 0.05}),
    (3, 0.3, {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1}),
    (8, 0.6, {"lr": 0.02, "momentum": 0.0, "label_smoothing": 0.2}),
    (9, 0.1, {"lr": 0.08, "patience": 1, "weight_decay": 0.01}),
]


def largest_difference(alone, together):
    return max(
        float((one - other).abs().max())
        for a, b in zip(alone, together, strict=True)
        for one, other in zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True)
        if one.numel()
    )


def trained(of, built, seed=0, on_epoch=lambda row: None, train=None, val=None, **train_settings):
    return samples.train(built, of, settings(**train_settings), seed, on_epoch=on_epoch, rows=train, val=val)


def numpy_state() -> Any:
    """The state of NumPy's global generator."""
    found: Any = np.random.get_state()
    return found[1].copy()


def state(built):
    return copy.deepcopy(built.state_dict())


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)
