"""Temperature scaling: probabilities that say how often they are right (Guo et al. 2017, section 4.2)."""

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor

from pipeline.core.settings import Task
from pipeline.networks import losses

LOWEST, HIGHEST = 0.05, 20.0  # of a temperature
PRIOR_SD = 0.5  # of its logarithm: a temperature between 0.6 and 1.6 needs little evidence


def fit_temperature(outputs: Tensor, y: Tensor, task: Task) -> float:
    """What to divide outputs [n, n_outputs] of validation rows by for the least loss; 1 for regression.

    One number for all classes: the predicted class stays as it is. Its logarithm has a normal prior around 0: a few rows
    that happen to be all right would else be told with certainty.
    """
    if task == "regression":
        return 1.0
    outputs = outputs.double()
    found = minimize_scalar(
        lambda log: len(y) * float(losses.loss(outputs / np.exp(log), y, task)) + log**2 / (2 * PRIOR_SD**2),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(f"{np.exp(found.x):.4g}")
