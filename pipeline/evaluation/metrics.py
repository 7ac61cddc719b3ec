"""Compute metrics of predictions by task, with torchmetrics."""

import torch
from torch import Tensor
from torchmetrics.functional import classification, regression

from pipeline.core.settings import Task

CALIBRATION_BINS = 15


def score(predicted: Tensor, y: Tensor, task: Task, scale: float = 1.0) -> dict[str, float]:
    """Compute accuracy, macro F1 and AUROC of probabilities [n, classes]; or RMSE, MAE and R² of values [n].

    `scale` is the target's standard deviation, which converts errors to the target's units. AUROC is the mean over the
    classes that some but not all rows have, and is left out without such a class; R² is left out if all targets are equal.
    """
    if task == "regression":
        rmse = float(regression.mean_squared_error(predicted, y, squared=False))
        scores = {"rmse": scale * rmse, "mae": scale * float(regression.mean_absolute_error(predicted, y))}
        return scores | ({"r2": float(regression.r2_score(predicted, y))} if len(y) > 1 and y.min() < y.max() else {})
    return {"accuracy": accuracy(predicted.argmax(1), y), "f1": _macro_f1(predicted, y)} | _auroc(predicted, y)


def accuracy(predicted_codes: Tensor, y: Tensor) -> float:
    n_classes = int(torch.maximum(predicted_codes.max(), y.max())) + 1
    return float(classification.multiclass_accuracy(predicted_codes, y, num_classes=max(2, n_classes), average="micro"))


def _macro_f1(probabilities: Tensor, y: Tensor) -> float:
    """Average over the classes in `y` or among the predictions, as scikit-learn does."""
    n_classes = probabilities.shape[1]
    codes = probabilities.argmax(1)
    each = classification.multiclass_f1_score(codes, y, num_classes=n_classes, average="none")
    occurs = (torch.bincount(y, minlength=n_classes) + torch.bincount(codes, minlength=n_classes)) > 0
    return float(each[occurs].mean())


def _auroc(probabilities: Tensor, y: Tensor) -> dict[str, float]:
    counts = torch.bincount(y, minlength=probabilities.shape[1])
    classes = ((counts > 0) & (counts < len(y))).nonzero().flatten().tolist()
    if probabilities.shape[1] == 2:
        classes = classes[1:]  # both classes of a binary task have the same area
    areas = [float(classification.binary_auroc(probabilities[:, k], (y == k).long())) for k in classes]
    return {"auroc": sum(areas) / len(areas)} if areas else {}


def calibration_error(probabilities: Tensor, y: Tensor) -> float:
    """Compute the expected calibration error, the mean gap between confidence and accuracy (Guo et al. 2017, eq. 3)."""
    confidence, codes = probabilities.max(1)
    sure = confidence.clamp(max=1 - 2**-24)  # torchmetrics puts confidence 1 into an extra bin
    return float(classification.binary_calibration_error(sure, (codes == y).long(), n_bins=CALIBRATION_BINS))
