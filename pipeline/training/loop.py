"""`fit`, the one training loop, and the members it trains."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.errors import DivergedError
from pipeline.core.scores import task_metrics
from pipeline.core.settings import Config, Task, Train
from pipeline.networks import losses
from pipeline.networks.build import build_network, edges_of
from pipeline.networks.device import generator
from pipeline.networks.gradients import Mixup
from pipeline.networks.modules import bin_edges
from pipeline.networks.optimizers import Optimizer, State
from pipeline.networks.stack import Stack, outputs_of, predict
from pipeline.tables.schema import Schema, Target
from pipeline.tables.tensors import TabularData, batches
from pipeline.training.draws import Draws, mixup_shares, swapped
from pipeline.training.schedule import lr_factor

OWN = {"lr", "momentum", "weight_decay", "label_smoothing", "patience"}  # what the members of a stack may differ in
Epoch = dict[str, float]  # one row of history.csv; "epoch" counts from 1
OnEpoch = Callable[[Epoch], None]  # called with the mean row of the members that trained


@dataclass(frozen=True)
class Objective:
    """What the members of a stack make small: the loss, each with its own `smoothing` [K, 1] where there is any."""

    task: Task
    smoothing: float | Tensor
    weights: Tensor | None

    def __call__(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean losses [K] of outputs [K, B, n_outputs] for y [K or 1, B], and their gradients."""
        terms = (outputs, y, self.task, self.smoothing, self.weights)
        return losses.loss(*terms), losses.loss_gradient(*terms)


@dataclass
class Member:
    """One network in training: what it learns by, and how far it has come.

    What epoch e draws is a function of (seed, e) alone. `network` has the weights of the last epoch while training goes
    on, and those of `best_epoch` when it is over.
    """

    network: nn.Sequential
    settings: Train
    seed: int
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: State = field(default_factory=dict)
    memory: State = field(default_factory=dict)  # the optimiser's
    diverged: str | None = None

    @property
    def over(self) -> bool:
        done, patience = len(self.history), self.settings.patience
        waited = patience is not None and done - self.best_epoch >= patience and done > 0
        return self.diverged is not None or done >= self.settings.n_epochs or waited

    @property
    def best(self) -> Epoch:
        """The row of the best epoch."""
        return self.history[self.best_epoch - 1]

    @property
    def fitted(self) -> nn.Sequential:
        """The network with its best weights. Raises `DivergedError` if the loss ceased to be finite."""
        if self.diverged is not None:
            raise DivergedError(self.diverged)
        return self.network

    def add(self, row: Epoch) -> None:
        """Take in what an epoch brought, and remember the weights if they are the best so far."""
        if not (math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])):
            self.diverged = f"the loss is no longer finite in epoch {row['epoch']} at lr {row['lr']:g}: try a smaller train.lr, or train.clip"
            return
        self.history.append(row)
        if len(self.history) == 1 or row["val_loss"] < self.best["val_loss"]:
            self.best_epoch = len(self.history)
            self.best_weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that training continues from: `weights.*`, `best.*`, and `memory.*` of the optimiser."""
        parts = {"weights": self.network.state_dict(), "best": self.best_weights, "memory": self.memory}
        return {f"{part}.{name}": tensor for part, own in parts.items() for name, tensor in own.items()}

    def progress(self) -> dict[str, Any]:
        """The plain values that training continues from, as JSON holds them."""
        return {"history": self.history, "best_epoch": self.best_epoch, "diverged": self.diverged}

    def restore(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Continue where another member of the same shape was: with what its `tensors` and `progress` returned."""
        device = next(self.network.parameters()).device
        parts: dict[str, State] = {"weights": {}, "best": {}, "memory": {}}
        for name, tensor in tensors.items():
            part, _, own = name.partition(".")
            parts[part][own] = tensor.to(device)
        self.network.load_state_dict(parts["weights"])
        self.best_weights, self.memory = parts["best"], parts["memory"]
        self.history, self.best_epoch = list(progress["history"]), progress["best_epoch"]
        self.diverged = progress["diverged"]


def member_seeds(seed: int, n: int) -> list[int]:
    """The seed of each member of an ensemble: the first is `seed` itself, so that one member is what a network alone is."""
    return [seed, *(int(each) for each in np.random.SeedSequence((seed, 5)).generate_state(n - 1))] if n > 1 else [seed]


def new_members(
    config: Config, train: TabularData, learned: Schema, edges: Sequence[Tensor] | None = None
) -> list[Member]:
    """The `model.ensemble` members of a configuration, untrained, on the device of `train`.

    `edges` are the `bin_edges` of its rows, if they are known already.
    """
    model = config.model
    if edges is None:
        edges = bin_edges(train.x_num, model.bins) if model.numeric == "ple" else ()
    members = []
    for seed in member_seeds(config.seed, model.n_members):
        network = build_network(model, learned, learned.target.n_outputs, generator(seed), edges).to(train.y.device)
        members.append(Member(network, config.train, seed))
    return members


def mean_history(members: Sequence[Member]) -> list[Epoch]:
    """A row an epoch: the means over the members that still trained."""
    epochs = range(max(len(member.history) for member in members))
    return [mean_row([m.history[epoch] for m in members if epoch < len(m.history)]) for epoch in epochs]


def mean_row(rows: Sequence[Epoch]) -> Epoch:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} | {"epoch": rows[0]["epoch"]}


def fit(
    members: Sequence[Member],
    train: TabularData,
    val: TabularData,
    target: Target,
    *,
    until: int | None = None,
    on_epoch: OnEpoch = lambda row: None,
) -> None:
    """Train members of one shape side by side, each as if it were alone, until they are over or have `until` epochs.

    Best is the lowest validation loss. Each epoch is recorded with loss and headline metric on training and validation
    rows. Networks and data are on one device. Members that have begun continue where they are.
    """
    assert len(members) == 1 or len({(len(m.history), shape_of(m)) for m in members if not m.over}) <= 1
    metric = task_metrics(target.task)[0]
    while learning := [m for m in members if not m.over and (until is None or len(m.history) < until)]:
        epoch = len(learning[0].history) + 1
        stack = Stack([member.network for member in learning])
        trained, last_factor = _train_epoch(stack, learning, epoch, train, target)
        stack.write([member.network for member in learning])
        outputs = outputs_of(stack, val)
        val_loss = losses.loss(outputs, val.y, target.task).double()
        measured = torch.stack([*trained, val_loss, losses.headline(outputs, val.y, target)], 1).tolist()
        names = ("train_loss", f"train_{metric}", "val_loss", f"val_{metric}")
        for member, values in zip(learning, measured, strict=True):
            lr = member.settings.lr * last_factor
            member.add({"epoch": epoch, **dict(zip(names, values, strict=True)), "lr": lr})
        if rows := [member.history[-1] for member in learning if member.diverged is None]:
            on_epoch(mean_row(rows))
    for member in members:
        if member.over and member.diverged is None:
            member.network.load_state_dict(member.best_weights)


def _train_epoch(
    stack: Stack, members: Sequence[Member], epoch: int, train: TabularData, target: Target
) -> tuple[tuple[Tensor, Tensor], float]:
    """Every batch once; returns mean loss and headline metric [K], and the last step's share of the learning rate.

    Nothing is read from the device before the epoch is over.
    """
    settings, device, size = members[0].settings, train.y.device, len(members)
    draws = Draws([member.seed for member in members], epoch, device)
    steps = math.ceil(len(train) / settings.rows_a_step)
    optimizer = Optimizer(
        stack.blocks, [m.settings for m in members], [m.memory for m in members], steps=(epoch - 1) * steps
    )
    column = partial(torch.tensor, dtype=train.x_num.dtype, device=device)
    smoothing = [m.settings.label_smoothing for m in members]
    objective = Objective(
        target.task,
        column(smoothing).unsqueeze(1) if any(smoothing) else 0.0,
        class_weights(train.y, target.n_outputs) if settings.class_weights else None,
    )
    factors = [lr_factor((epoch - 1) * steps + step, steps * settings.n_epochs, settings) for step in range(steps)]
    lrs = column([[member.settings.lr] for member in members]) * column(factors).view(-1, 1, 1)
    shares = column(mixup_shares(settings.augment.mixup, steps, draws.keys))
    total, scores = (torch.zeros(size, device=device, dtype=torch.float64) for _ in range(2))

    for step, batch in enumerate(batches(train, draws.order(len(train)), settings.rows_a_step)):
        loss, outputs, gradients = _learn(stack, batch, settings, objective, draws, shares[step])
        if settings.clip is not None:
            clip_gradients(gradients, settings.clip)
        optimizer.step(gradients, lrs[step])
        total += loss * len(batch)
        scores += losses.row_scores(outputs, batch.y, target.task).sum(1)

    for member, state in zip(members, optimizer.states(), strict=True):
        member.memory = state
    return (total / len(train), losses.from_row_scores(scores / len(train), target)), factors[-1]


def clip_gradients(gradients: Sequence[Tensor], limit: float) -> None:
    """Scale the gradients, blocks [K, P], in place: those of a member have a joint norm of at most `limit`."""
    norm = torch.stack([torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients]).norm(dim=0)
    for gradient in gradients:
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1))


def shape_of(member: Member) -> tuple[object, ...]:
    """What the members of a stack have in common: layers of one shape, and all settings but those in `OWN`."""
    layers = tuple(
        (
            str(layer) if not isinstance(layer, nn.Dropout) else "dropout",
            *((tuple(p.shape), p.requires_grad) for p in layer.parameters()),
        )
        for layer in member.network
    )
    edges = tuple(tuple(column.tolist()) for column in edges_of(member.network))
    return layers, edges, member.settings.model_dump_json(exclude=OWN)


def evaluate(networks: Sequence[nn.Sequential], data: TabularData, target: Target) -> dict[str, float]:
    """Loss and headline metric of the networks' joint prediction on `data`."""
    outputs = losses.joint(predict(networks, data), target.task)
    return {
        "loss": float(losses.loss(outputs, data.y, target.task)),
        task_metrics(target.task)[0]: float(losses.headline(outputs, data.y, target)),
    }


def class_weights(y: Tensor, n_outputs: int) -> Tensor:
    """[classes] weights that give each class the same total: n / (classes * rows of the class)."""
    counts = torch.bincount(y, minlength=max(2, n_outputs)).clamp(min=1)
    return len(y) / (len(counts) * counts.float())


def _learn(
    stack: Stack, batch: TabularData, settings: Train, objective: Objective, draws: Draws, share: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The losses [K] of an augmented batch, the outputs [K, B, n_outputs] they come from, and the gradients."""
    augment = settings.augment
    x_num, x_cat = batch.x_num, batch.x_cat
    if augment.noise:
        x_num = x_num + augment.noise * draws.normal(x_num)
    if augment.swap:
        x_num, x_cat = swapped(x_num, augment.swap, draws), swapped(x_cat, augment.swap, draws)
    mixup = Mixup(draws.permutation(len(batch)), share) if augment.mixup else None
    outputs = stack(x_num, x_cat, stack.dropout_words(len(batch), draws.dropout), mixup)
    loss, gradient = objective(outputs, batch.y)
    if mixup is not None:
        other_loss, other_gradient = objective(outputs, batch.y.gather(1, mixup.partner))
        loss, gradient = torch.lerp(other_loss, loss, share), torch.lerp(other_gradient, gradient, share.view(-1, 1, 1))
    return loss, outputs, stack.gradients(gradient)
