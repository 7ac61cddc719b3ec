"""Bundle trained members and calibrate their probabilities."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor

from pipeline.core import config
from pipeline.core.settings import Config, Task
from pipeline.networks import losses
from pipeline.networks.bundle import Bundle
from pipeline.tables.preprocessing import Preprocessor
from pipeline.tables.schema import Schema
from pipeline.tables.tensors import TabularData
from pipeline.training.loop import Member

LOWEST, HIGHEST = 0.05, 20.0  # bounds of the temperature
PRIOR_SD = 0.5  # of the log temperature: values between 0.6 and 1.6 need little evidence


def fitted_bundle(
    members: Sequence[Member], settings: Config, schema: Schema, preprocessor: Preprocessor, val: TabularData
) -> Bundle:
    """Bundle the best weights of `members`, calibrated if `train.calibration`; raises `DivergedError`."""
    params = config.flatten({"seed": settings.seed, **settings.model_dump(mode="json", include={"model", "train"})})
    networks = tuple(member.fitted for member in members)
    bundle = Bundle(networks, settings.model, schema, schema.target, preprocessor, params)
    return calibrated(bundle, val) if settings.train.calibration else bundle


def calibrated(bundle: Bundle, val: TabularData) -> Bundle:
    """Return the bundle with the temperature fitted on validation rows."""
    return replace(bundle, temperature=fit_temperature(bundle.outputs(val), val.y, bundle.target.task))


def fit_temperature(outputs: Tensor, y: Tensor, task: Task) -> float:
    """Return the divisor of outputs [n, n_outputs] with the lowest loss (Guo et al. 2017, section 4.2); 1 for regression.

    A single temperature never changes the predicted class. A normal prior on its logarithm prevents probabilities of 1
    where the few validation rows are all predicted correctly.
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
