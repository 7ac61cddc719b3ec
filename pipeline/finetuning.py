"""A trained network for a similar task: what stays, what is new."""

import copy

from torch import nn

from pipeline.bundle import Bundle
from pipeline.config import Finetune, Train
from pipeline.data import generator
from pipeline.model import freeze, replace_output
from pipeline.schema import Target


def adapt(trained: Bundle, target: Target, finetune: Finetune, seed: int) -> nn.Sequential:
    """A copy of the trained network, its first layers frozen, with a new last layer if `target` has other classes."""
    network = copy.deepcopy(trained.network)
    if target != trained.target:
        replace_output(network, target.n_outputs, trained.model, generator(seed))
    freeze(network, finetune.freeze)
    return network


def settings(train: Train, finetune: Finetune) -> Train:
    """The settings of training, with those that `finetune` has of its own."""
    return train.model_copy(update=finetune.model_dump(include={"lr", "epochs", "patience"}))
