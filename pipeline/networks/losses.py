"""Losses, their gradients, and what outputs predict, for the networks of a stack."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.settings import Task
from pipeline.tables.schema import Target


def loss(
    outputs: Tensor, y: Tensor, task: Task, smoothing: float | Tensor = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Mean loss over B of raw network outputs [..., B, n_outputs]: binary or softmax cross-entropy, or squared error.

    `y` is [B] or [..., B]. `smoothing`, a number or [..., 1], mixes that share of the uniform distribution into the target
    (Szegedy et al. 2016, section 7); `weights` [classes] make it the weighted mean of its rows. The squared error is of the
    standardised target: always predicting the mean gives about 1.
    """
    y = y.expand(outputs.shape[:-1])
    if task == "regression":
        return (outputs.squeeze(-1) - y).square().mean(-1)
    smooth = isinstance(smoothing, Tensor) or smoothing > 0
    if task == "multiclass":
        logs = outputs.mT.contiguous().log_softmax(-2)  # over rows side by side: a few classes take torch longer
        each = -logs.gather(-2, y.unsqueeze(-2)).squeeze(-2)
        if smooth:
            each = (1 - smoothing) * each - smoothing * logs.mean(-2)
    else:
        goal = y.to(outputs.dtype)
        if smooth:
            goal = goal * (1 - smoothing) + smoothing / 2
        each = F.binary_cross_entropy_with_logits(outputs.squeeze(-1), goal, reduction="none")
    return each.mean(-1) if weights is None else (weights[y] * each).sum(-1) / weights[y].sum(-1)


def loss_gradient(
    outputs: Tensor, y: Tensor, task: Task, smoothing: float | Tensor = 0.0, weights: Tensor | None = None
) -> Tensor:
    """The derivative of `loss` by `outputs`, in their shape: what is predicted less what is true, by row."""
    y = y.expand(outputs.shape[:-1])
    share = torch.full_like(outputs[..., :1, 0], 1 / y.shape[-1])  # of a row in the mean, [..., 1 or B]
    if weights is not None:
        share = weights[y] / weights[y].sum(-1, keepdim=True)
    if task == "regression":
        return (2 * share * (outputs.squeeze(-1) - y)).unsqueeze(-1)
    uniform = torch.as_tensor(smoothing, dtype=outputs.dtype, device=outputs.device)
    if task == "binary":
        goal = torch.lerp(y.to(outputs.dtype), torch.full_like(outputs[..., 0], 0.5), uniform)
        return (share * (outputs.squeeze(-1).sigmoid() - goal)).unsqueeze(-1)
    off = outputs.mT.contiguous().softmax(-2)
    if isinstance(smoothing, Tensor) or smoothing > 0:
        off -= uniform.unsqueeze(-1) / off.shape[-2]
    true = (uniform - 1).expand_as(y).unsqueeze(-2)
    return off.scatter_add_(-2, y.unsqueeze(-2), true).mul_(share.unsqueeze(-2)).mT


def row_scores(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """What the headline metric is a mean of, by row of outputs [..., B, n_outputs]: 1 where right, or the squared error."""
    match task:
        case "regression":
            return (outputs.squeeze(-1) - y).square()
        case "binary":
            return ((outputs.squeeze(-1) > 0) == y.bool()).to(outputs.dtype)
        case "multiclass":
            return (outputs.argmax(-1) == y).to(outputs.dtype)


def predictions(outputs: Tensor, task: Task) -> Tensor:
    """Raw outputs [n, n_outputs] to probabilities [n, classes], or values [n] for regression."""
    if task == "regression":
        return outputs.squeeze(1)
    if task == "multiclass":
        return outputs.softmax(1)
    positive = outputs.sigmoid()
    return torch.cat([1 - positive, positive], 1)


def joint(outputs: Tensor, task: Task) -> Tensor:
    """Outputs [K, n, n_outputs] of K networks as the outputs [n, n_outputs] that give their mean prediction."""
    if len(outputs) == 1:
        return outputs[0]
    match task:
        case "regression":
            return outputs.mean(0)
        case "multiclass":
            return outputs.log_softmax(-1).logsumexp(0) - math.log(len(outputs))
        case "binary":
            return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)


def headline(outputs: Tensor, y: Tensor, target: Target) -> Tensor:
    """The metric that a person looks at first: accuracy, or RMSE in the target's own units.

    Shape: outputs [..., B, n_outputs] and y [B] to [...], float64.
    """
    return from_row_scores(row_scores(outputs, y, target.task).double().mean(-1), target)


def from_row_scores(mean: Tensor, target: Target) -> Tensor:
    """`headline` from the mean of `row_scores`."""
    return target.std * mean.sqrt() if target.task == "regression" else mean
