"""Losses, their gradients, headline metrics and predictions, for the outputs of one network or of a stack."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.settings import Task
from pipeline.tables.schema import Target


def loss(
    outputs: Tensor, y: Tensor, task: Task, smoothing: float | Tensor = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Compute the mean loss over B of raw outputs [..., B, n_outputs]: cross-entropy, or squared error.

    `y` is [B] or [..., B]. `smoothing`, a number or [..., 1], is the share of the uniform distribution mixed into the
    target (Szegedy et al. 2016, section 7); `weights` [classes] weight the rows of the mean. The squared error is of the
    standardised target, so that predicting the mean gives about 1.
    """
    y = y.expand(outputs.shape[:-1])
    if task == "regression":
        return (outputs.squeeze(-1) - y).square().mean(-1)
    smooth = isinstance(smoothing, Tensor) or smoothing > 0
    if task == "multiclass":
        logs = outputs.mT.contiguous().log_softmax(-2)  # transposed: faster than over a few classes
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
    """Compute the gradient of `loss` with respect to `outputs`, in their shape."""
    y = y.expand(outputs.shape[:-1])
    share = torch.full_like(outputs[..., :1, 0], 1 / y.shape[-1])  # weight of a row in the mean, [..., 1 or B]
    if weights is not None:
        share = weights[y] / weights[y].sum(-1, keepdim=True)
    if task == "regression":
        return (2 * share * (outputs.squeeze(-1) - y)).unsqueeze(-1)
    uniform = torch.as_tensor(smoothing, dtype=outputs.dtype, device=outputs.device)
    if task == "binary":
        goal = torch.lerp(y.to(outputs.dtype), torch.full_like(outputs[..., 0], 0.5), uniform)
        return (share * (outputs.squeeze(-1).sigmoid() - goal)).unsqueeze(-1)
    error = outputs.mT.contiguous().softmax(-2)
    if isinstance(smoothing, Tensor) or smoothing > 0:
        error -= uniform.unsqueeze(-1) / error.shape[-2]
    true = (uniform - 1).expand_as(y).unsqueeze(-2)
    return error.scatter_add_(-2, y.unsqueeze(-2), true).mul_(share.unsqueeze(-2)).mT


def row_scores(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """Score each row of outputs [..., B, n_outputs]: 1 if the class is right and 0 if not, or the squared error."""
    match task:
        case "regression":
            return (outputs.squeeze(-1) - y).square()
        case "binary":
            return ((outputs.squeeze(-1) > 0) == y.bool()).to(outputs.dtype)
        case "multiclass":
            return (outputs.argmax(-1) == y).to(outputs.dtype)


def predictions(outputs: Tensor, task: Task) -> Tensor:
    """Turn raw outputs [n, n_outputs] into probabilities [n, classes], or values [n] for regression."""
    if task == "regression":
        return outputs.squeeze(1)
    if task == "multiclass":
        return outputs.softmax(1)
    positive = outputs.sigmoid()
    return torch.cat([1 - positive, positive], 1)


def joint(outputs: Tensor, task: Task) -> Tensor:
    """Combine outputs [K, n, n_outputs] into the outputs [n, n_outputs] that give the mean prediction."""
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
    """Compute accuracy, or RMSE in units of the target: outputs [..., B, n_outputs] and y [B] to float64 [...]."""
    return headline_of_mean(row_scores(outputs, y, target.task).double().mean(-1), target)


def headline_of_mean(mean: Tensor, target: Target) -> Tensor:
    """Compute `headline` from the mean of `row_scores`."""
    return target.std * mean.sqrt() if target.task == "regression" else mean
