"""Temperature scaling: probabilities that say how often they are right (Guo et al. 2017, section 4.2)."""

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor

from pipeline import metrics
from pipeline.settings import Task

LOWEST, HIGHEST = 0.05, 20.0  # of a temperature


def fit_temperature(outputs: Tensor, y: Tensor, task: Task) -> float:
    """What to divide outputs [n, n_outputs] of validation rows by for the least loss; 1 for regression.

    One number for all classes: the predicted class stays as it is.
    """
    if task == "regression":
        return 1.0
    outputs = outputs.double()
    found = minimize_scalar(
        lambda log: float(metrics.loss(outputs / np.exp(log), y, task)),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(f"{np.exp(found.x):.4g}")
