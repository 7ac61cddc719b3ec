"""A one-batch overfit check, and the gap between training and validation loss."""

import copy

import torch
from torch import nn

from pipeline.core.errors import DivergedError, UserError
from pipeline.core.settings import Train
from pipeline.networks.device import generator
from pipeline.tables.schema import Target
from pipeline.tables.tensors import TabularData
from pipeline.training.loop import Epoch, Member, fit

OVERFITTING_GAP = 0.1  # of the validation loss


def overfit_check(
    network: nn.Sequential, train: TabularData, settings: Train, target: Target, *, seed: int
) -> list[Epoch]:
    """Train a copy of `network` on one batch until it is learnt by heart; its history, a row a step.

    Augmentation and regularisation are off, the optimiser and its settings are those of the training to come. Rows
    that the network cannot tell apart are left out of the batch. Raises `UserError` if accuracy 1.0 (regression: a
    loss under 1 % of the batch's variance) is not reached in `overfit.steps` steps.
    """
    if settings.overfit is None:
        return []
    batch = _distinct_rows(train, settings.overfit.rows, seed)
    if target.task == "regression" and float(batch.y.var(correction=0)) == 0:
        return []  # a batch of equal targets has nothing to learn by heart
    copied = copy.deepcopy(network)
    for layer in copied:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    member = Member(copied, _by_heart(settings, settings.overfit.steps, len(batch)), seed)
    goal = 0.01 * float(batch.y.var(correction=0)) if target.task == "regression" else None

    def learnt(row: Epoch) -> bool:
        return row["val_loss"] < goal if goal is not None else row["val_accuracy"] == 1.0

    while not member.over and not (member.history and learnt(member.history[-1])):
        fit([member], batch, batch, target, until=len(member.history) + 1)
    if member.diverged is not None:
        raise DivergedError(member.diverged)
    last = member.history[-1]
    if not learnt(last):
        reached = (
            f"loss {last['val_loss']:.3g}, wanted below {goal:.3g}"
            if goal is not None
            else f"accuracy {last['val_accuracy']:.3f}, wanted 1.0"
        )
        raise UserError(
            f"overfit check: {len(member.history)} steps on one batch of {len(batch)} rows reached {reached}. Usually train.lr is"
            " too small or too large, model.hidden too narrow, model.init zeros, or equal rows have different targets;"
            " train.overfit: null turns the check off"
        )
    return member.history


def _by_heart(settings: Train, steps: int, n_rows: int) -> Train:
    """`settings` for a batch to be learnt by heart: a step an epoch, nothing that holds the network back."""
    free = {"weight_decay": 0.0, "label_smoothing": 0.0, "class_weights": None, "schedule": "constant", "warmup": 0.0}
    augment = settings.augment.model_copy(update={"noise": 0.0, "swap": 0.0, "mixup": 0.0})
    shape = {"augment": augment, "epochs": steps, "patience": None, "batch_size": n_rows}
    return settings.model_copy(update=free | shape)


def _distinct_rows(data: TabularData, n: int, seed: int) -> TabularData:
    """`n` random rows, or as many as differ in what the network sees."""
    drawn = data.take(torch.randperm(len(data), generator=generator(seed, 0))[: 4 * n].to(data.y.device))
    seen = torch.cat([drawn.x_num, drawn.x_cat.float()], 1).round(decimals=2)
    _, kinds = seen.unique(dim=0, return_inverse=True)
    first: dict[int, int] = {}
    for row, kind in enumerate(kinds.tolist()):
        first.setdefault(kind, row)
    return drawn.take(torch.tensor(list(first.values())[:n], device=data.y.device))


def gap(train: dict[str, float], val: dict[str, float]) -> str:
    """The distance between the losses on training and validation rows in words, named where it means overfitting."""
    distance = val["loss"] - train["loss"]
    says = f"loss {train['loss']:.4f} on training rows, {val['loss']:.4f} on validation rows, gap {distance:+.4f}"
    if distance > OVERFITTING_GAP * val["loss"]:
        says += ": overfitting; more dropout, more weight decay or a smaller network may help"
    return says
