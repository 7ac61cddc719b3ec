"""Trials: their results, their state between rungs, and their training."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.core.settings import Config
from pipeline.networks.device import generator
from pipeline.networks.modules import bin_edges
from pipeline.tables.schema import Schema
from pipeline.tables.tensors import TabularData
from pipeline.training.checkpoints import NONE, Checkpoints
from pipeline.training.loop import Epoch, Member, fit, new_members

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """The parameters and result of one trial; `score` covers the epochs it trained, None if it diverged."""

    number: int
    params: dict[str, Any]
    state: State
    score: float | None
    best_epoch: int | None
    history: tuple[Epoch, ...]

    def line(self) -> str:
        texts = {name: f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in self.params.items()}
        score = "diverged" if self.score is None else f"{self.score:.4f}"
        pruned = f", pruned after {len(self.history)} epochs" if self.state == "pruned" else ""
        return f"trial {self.number}: {score}{pruned}, {', '.join(f'{name} {text}' for name, text in texts.items())}"


@dataclass
class Contender:
    """An unfinished trial, as plain values and arrays that can be sent to a worker process."""

    number: int
    config: Config
    progress: dict[str, Any] = field(default_factory=dict)  # of its `Member`; empty before the first epoch
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def history(self) -> list[Epoch]:
        return list(self.progress.get("history", []))


@dataclass(frozen=True)
class Work:
    """The data of a search; a call trains a stack of trials as the stage train does, for up to `search.epochs`."""

    train: TabularData
    val: TabularData
    schema: Schema
    saved: Checkpoints = NONE
    edges: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)  # by `model.bins`, computed once

    @classmethod
    def of(
        cls, train: TabularData, val: TabularData, schema: Schema, config: Config, saved: Checkpoints = NONE
    ) -> "Work":
        """Draw `search.rows` of the training rows, or take them all."""
        if config.search.rows is not None and config.search.rows < len(train):
            drawn = torch.randperm(len(train), generator=generator(config.seed, 0, 3))[: config.search.rows]
            train = train.take(drawn.sort().values.to(train.y.device))
        return cls(train, val, schema, saved)

    def __call__(self, stack: list[Contender], until: int) -> list[Contender]:
        members = [self._member(contender) for contender in stack]
        name = f"trial-{stack[0].number}-to-{until}"  # unique: in each rung a trial is in one stack
        on_epoch = self.saved.resume(name, members)
        fit(members, self.train, self.val, self.schema.target, until=until, on_epoch=on_epoch)
        self.saved.save(name, members)
        for contender, member in zip(stack, members, strict=True):
            contender.progress = member.progress()
            # As arrays: tensors are sent to other processes by file descriptor.
            contender.arrays = {name: tensor.cpu().numpy() for name, tensor in member.tensors().items()}
        return stack

    def _member(self, contender: Contender) -> Member:
        config, model = contender.config, contender.config.model
        if model.numeric == "ple" and model.bins not in self.edges:
            self.edges[model.bins] = bin_edges(self.train.x_num, model.bins)
        (member,) = new_members(config, self.train, self.schema, self.edges.get(model.bins, ()))
        member.settings = config.train.model_copy(update={"epochs": config.search.epochs, "patience": None})
        if contender.progress:
            tensors = {name: torch.from_numpy(array) for name, array in contender.arrays.items()}
            member.restore(tensors, contender.progress)
        return member
