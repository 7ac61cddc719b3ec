"""One trial: its record, its state between rungs, and how it is trained."""

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


@dataclass(frozen=True)
class Trial:
    """One trial: the parameters it drew and how it went; `score` is None where it diverged.

    The score of a pruned trial is that of the epochs it had.
    """

    number: int
    params: dict[str, Any]
    state: Literal["complete", "pruned", "failed"]
    score: float | None
    best_epoch: int | None
    history: tuple[Epoch, ...]

    def line(self) -> str:
        drawn = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.params.items()
        )
        score = "diverged" if self.score is None else f"{self.score:.4f}"
        pruned = f" after {len(self.history)} epochs, pruned" if self.state == "pruned" else ""
        return f"trial {self.number}: {score}{pruned} with {drawn}"


@dataclass
class Contender:
    """A trial that is still in the running: plain values and arrays, so that it can go to a worker and back."""

    number: int
    config: Config
    progress: dict[str, Any] = field(default_factory=dict)  # of its `Member`; empty before the first epoch
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def history(self) -> list[Epoch]:
        return list(self.progress.get("history", []))


@dataclass(frozen=True)
class Work:
    """What a trial is trained on: as the stage train does it, but for `search.epochs` and on `search.rows` rows."""

    train: TabularData
    val: TabularData
    learned: Schema
    saved: Checkpoints = NONE
    edges: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)  # by `model.bins`, found once

    @classmethod
    def of(
        cls, train: TabularData, val: TabularData, learned: Schema, config: Config, saved: Checkpoints = NONE
    ) -> "Work":
        if config.search.rows is None or config.search.rows >= len(train):
            return cls(train, val, learned, saved)
        drawn = torch.randperm(len(train), generator=generator(config.seed, 0, 3))[: config.search.rows]
        return cls(train.take(drawn.sort().values.to(train.y.device)), val, learned, saved)

    def __call__(self, stack: list[Contender], until: int) -> list[Contender]:
        members = [self._member(contender) for contender in stack]
        name = f"trial-{stack[0].number}-to-{until}"  # in each rung a trial is in one stack
        keep = self.saved.keeping(name, members)
        fit(members, self.train, self.val, self.learned.target, until=until, on_epoch=keep)
        self.saved.save(name, members)
        for contender, member in zip(stack, members, strict=True):
            contender.progress = member.progress()
            # As arrays: a tensor would go to another process through a file descriptor.
            contender.arrays = {name: tensor.cpu().numpy() for name, tensor in member.tensors().items()}
        return stack

    def _member(self, contender: Contender) -> Member:
        config = contender.config
        model = config.model
        if model.numeric == "ple" and model.bins not in self.edges:
            self.edges[model.bins] = bin_edges(self.train.x_num, model.bins)
        (member,) = new_members(config, self.train, self.learned, self.edges.get(model.bins, ()))
        member.settings = config.train.model_copy(update={"epochs": config.search.epochs, "patience": None})
        if contender.progress:
            tensors = {name: torch.from_numpy(array) for name, array in contender.arrays.items()}
            member.restore(tensors, contender.progress)
        return member
