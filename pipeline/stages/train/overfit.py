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

OVERFITTING_GAP = 0.1  # as a share of the validation loss


def overfit_check(
    network: nn.Sequential, train: TabularData, settings: Train, target: Target, *, seed: int
) -> list[Epoch]:
    """Train a copy of `network` on one batch until it fits it perfectly; return the history, a row per step.

    Augmentation and regularisation are off; the optimiser is that of training. Rows with nearly equal features are left
    out of the batch. Raises `UserError` if accuracy 1.0 (regression: a loss below 1 % of the batch's variance) is not
    reached in `overfit.steps` steps.
    """
    if settings.overfit is None:
        return []
    batch = _distinct_rows(train, settings.overfit.rows, seed)
    regression = target.task == "regression"
    goal = 0.01 * float(batch.y.var(correction=0)) if regression else 1.0
    if goal == 0:
        return []  # equal targets cannot be overfitted
    network = copy.deepcopy(network)
    for layer in network:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    member = Member(network, _unregularised(settings, settings.overfit.steps, len(batch)), seed)

    def reached(row: Epoch) -> bool:
        return row["val_loss"] < goal if regression else row["val_accuracy"] == goal

    while not member.is_finished and not (member.history and reached(member.history[-1])):
        fit([member], batch, batch, target, until=len(member.history) + 1)
    if member.diverged is not None:
        raise DivergedError(member.diverged)
    last = member.history[-1]
    if not reached(last):
        result = f"loss {last['val_loss']:.3g}, wanted below {goal:.3g}"
        if not regression:
            result = f"accuracy {last['val_accuracy']:.3f}, wanted 1.0"
        raise UserError(
            f"overfit check: {len(member.history)} steps on one batch of {len(batch)} rows reached {result}. Usual causes:"
            " train.lr too small or too large, model.hidden too narrow, model.init zeros, equal rows with different"
            " targets; train.overfit: null disables the check"
        )
    return member.history


def _unregularised(settings: Train, steps: int, n_rows: int) -> Train:
    free = {"weight_decay": 0.0, "label_smoothing": 0.0, "class_weights": None, "schedule": "constant", "warmup": 0.0}
    augment = settings.augment.model_copy(update={"noise": 0.0, "swap": 0.0, "mixup": 0.0})
    shape = {"augment": augment, "epochs": steps, "patience": None, "batch_size": n_rows}
    return settings.model_copy(update=free | shape)


def _distinct_rows(data: TabularData, n: int, seed: int) -> TabularData:
    """Draw `n` random rows with distinct features, or fewer if there are not as many."""
    drawn = data.take(torch.randperm(len(data), generator=generator(seed, 0))[: 4 * n].to(data.y.device))
    features = torch.cat([drawn.x_num, drawn.x_cat.float()], 1).round(decimals=2)
    _, kinds = features.unique(dim=0, return_inverse=True)
    first = {kind: row for row, kind in reversed(list(enumerate(kinds.tolist())))}
    return drawn.take(torch.tensor(sorted(first.values())[:n], device=data.y.device))


def describe_gap(train: dict[str, float], val: dict[str, float]) -> str:
    """Format the training loss, the validation loss and their difference, with a note if it indicates overfitting."""
    distance = val["loss"] - train["loss"]
    text = f"loss {train['loss']:.4f} on training rows, {val['loss']:.4f} on validation rows, gap {distance:+.4f}"
    if distance > OVERFITTING_GAP * val["loss"]:
        text += ": overfitting; more dropout, more weight decay or a smaller network may help"
    return text
