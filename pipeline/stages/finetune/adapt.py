"""Adapt trained networks to the transfer domain."""

import copy

import torch
from torch import nn

from pipeline.core.settings import Config, Finetune, Train
from pipeline.networks.build import build_network, edges_of, freeze, replace_output
from pipeline.networks.bundle import Bundle
from pipeline.networks.device import generator
from pipeline.tables.schema import Target
from pipeline.training.loop import Member, member_seeds


def members(trained: Bundle, target: Target, config: Config, device: torch.device) -> list[Member]:
    """Return adapted copies of the trained networks, to be fine-tuned."""
    tuned = settings(config.train, config.finetune)
    seeds = member_seeds(config.seed, len(trained.members))
    networks = [adapt(trained, k, target, config.finetune, seed) for k, seed in enumerate(seeds)]
    return [Member(network.to(device), tuned, seed) for network, seed in zip(networks, seeds, strict=True)]


def from_scratch(trained: Bundle, target: Target, config: Config, device: torch.device) -> list[Member]:
    """Return new networks of the same shape, to compare fine-tuning with."""
    edges, n_outputs = edges_of(trained.members[0]), target.n_outputs
    seeds = member_seeds(config.seed, len(trained.members))
    networks = [build_network(trained.model, trained.schema, n_outputs, generator(seed), edges) for seed in seeds]
    return [Member(network.to(device), config.train, seed) for network, seed in zip(networks, seeds, strict=True)]


def adapt(trained: Bundle, k: int, target: Target, finetune: Finetune, seed: int) -> nn.Sequential:
    """Return a copy of member `k` with frozen layers, and a new last layer if `target` has other classes."""
    network = copy.deepcopy(trained.members[k])
    if target != trained.target:
        replace_output(network, target.n_outputs, trained.model, generator(seed, 0, 4))
    freeze(network, finetune.freeze)
    return network


def settings(train: Train, finetune: Finetune) -> Train:
    """Return the training settings with the values that `finetune` overrides."""
    return train.model_copy(update=finetune.model_dump(include={"lr", "epochs", "patience"}))
