"""From trained members to a bundle."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.core import config
from pipeline.core.settings import Config
from pipeline.networks.bundle import Bundle
from pipeline.tables.preprocessing import Preprocessor
from pipeline.tables.schema import Schema
from pipeline.tables.tensors import TabularData
from pipeline.training.calibration import fit_temperature
from pipeline.training.loop import Member


def fitted_bundle(
    members: Sequence[Member], settings: Config, learned: Schema, preprocessor: Preprocessor, val: TabularData
) -> Bundle:
    """The networks of `members` with their best weights and all they need to predict, calibrated if `train` says so.

    Raises `DivergedError` if the loss of a member became NaN or infinite.
    """
    params = config.flatten({"seed": settings.seed, **settings.model_dump(mode="json", include={"model", "train"})})
    networks = tuple(member.fitted for member in members)
    bundle = Bundle(networks, settings.model, learned, learned.target, preprocessor, params)
    return calibrated(bundle, val) if settings.train.calibration else bundle


def calibrated(bundle: Bundle, val: TabularData) -> Bundle:
    """The bundle with the temperature that minimises the loss on validation rows."""
    return replace(bundle, temperature=fit_temperature(bundle.outputs(val), val.y, bundle.target.task))
