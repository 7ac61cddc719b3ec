"""`fit`, the one training loop, and the members that it trains."""

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
from pipeline.core.settings import Config, Train
from pipeline.networks import losses
from pipeline.networks.build import build_network, edges_of
from pipeline.networks.device import generator
from pipeline.networks.gradients import Mixup
from pipeline.networks.modules import bin_edges
from pipeline.networks.optimizers import Optimizer, State
from pipeline.networks.stack import Stack, predict
from pipeline.tables.schema import Schema, Target
from pipeline.tables.tensors import TabularData, batches
from pipeline.training.draws import Draws, mixup_shares, swapped
from pipeline.training.schedule import lr_factor

OWN = {"lr", "momentum", "weight_decay", "label_smoothing", "patience"}  # settings that may differ within a stack
Epoch = dict[str, float]  # one row of history.csv; "epoch" counts from 1
OnEpoch = Callable[[Epoch], None]  # called with the mean row of the members that trained
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # losses [K] and their gradients, from outputs and y


@dataclass
class Member:
    """One network in training: its settings, its seed and its progress.

    `network` holds the weights of the last epoch during training, and those of `best_epoch` afterwards.
    """

    network: nn.Sequential
    settings: Train
    seed: int
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: State = field(default_factory=dict)
    memory: State = field(default_factory=dict)  # of the optimiser
    diverged: str | None = None  # the error message of a loss that became NaN or infinite

    @property
    def is_finished(self) -> bool:
        done, patience = len(self.history), self.settings.patience
        stops_early = patience is not None and done >= self.best_epoch + patience
        return self.diverged is not None or done >= self.settings.n_epochs or stops_early

    @property
    def best(self) -> Epoch:
        return self.history[self.best_epoch - 1]

    @property
    def fitted(self) -> nn.Sequential:
        """The network with its best weights. Raises `DivergedError` if the loss became NaN or infinite."""
        if self.diverged is not None:
            raise DivergedError(self.diverged)
        return self.network

    def add(self, row: Epoch) -> None:
        """Record an epoch, and keep its weights if its validation loss is the lowest."""
        if not (math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])):
            place = f"in epoch {row['epoch']} at lr {row['lr']:g}"
            self.diverged = f"the loss became NaN or infinite {place}: lower train.lr or set train.clip"
            return
        self.history.append(row)
        if len(self.history) == 1 or row["val_loss"] < self.best["val_loss"]:
            self.best_epoch = len(self.history)
            self.best_weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to resume from: `weights.*`, `best.*`, and `memory.*` of the optimiser."""
        parts = {"weights": self.network.state_dict(), "best": self.best_weights, "memory": self.memory}
        return {f"{part}.{name}": tensor for part, own in parts.items() for name, tensor in own.items()}

    def progress(self) -> dict[str, Any]:
        """Return the JSON values to resume from."""
        return {"history": self.history, "best_epoch": self.best_epoch, "diverged": self.diverged}

    def restore(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Resume from the `tensors` and `progress` of another member of the same shape."""
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
    """Return the seeds of `n` members; the first is `seed`, so that a single network equals the first member."""
    return [seed, *(int(each) for each in np.random.SeedSequence((seed, 5)).generate_state(n - 1))] if n > 1 else [seed]


def new_members(
    config: Config, train: TabularData, schema: Schema, edges: Sequence[Tensor] | None = None
) -> list[Member]:
    """Build the `model.ensemble` untrained members on the device of `train`; `edges` default to its `bin_edges`."""
    model = config.model
    if edges is None:
        edges = bin_edges(train.x_num, model.bins) if model.numeric == "ple" else ()
    members = []
    for seed in member_seeds(config.seed, model.n_members):
        network = build_network(model, schema, schema.target.n_outputs, generator(seed), edges).to(train.y.device)
        members.append(Member(network, config.train, seed))
    return members


def mean_history(members: Sequence[Member]) -> list[Epoch]:
    """Average the histories: a row per epoch, over the members that trained in it."""
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
    """Train members of one shape side by side, each as if alone, until they are finished or have `until` epochs.

    The best epoch has the lowest validation loss. Each epoch records loss and headline metric on training and validation
    rows. Networks and data are on one device. Members that have trained before resume after their last epoch.
    """
    assert len(members) == 1 or len({(len(m.history), shape_of(m)) for m in members if not m.is_finished}) <= 1
    metric = task_metrics(target.task)[0]
    while training := [m for m in members if not m.is_finished and (until is None or len(m.history) < until)]:
        epoch = len(training[0].history) + 1
        stack = Stack([member.network for member in training])
        trained, last_factor = _train_epoch(stack, training, epoch, train, target)
        stack.write([member.network for member in training])
        outputs = stack.predict(val)
        val_loss = losses.loss(outputs, val.y, target.task).double()
        measured = torch.stack([*trained, val_loss, losses.headline(outputs, val.y, target)], 1).tolist()
        names = ("train_loss", f"train_{metric}", "val_loss", f"val_{metric}")
        for member, values in zip(training, measured, strict=True):
            lr = member.settings.lr * last_factor
            member.add({"epoch": epoch, **dict(zip(names, values, strict=True)), "lr": lr})
        if rows := [member.history[-1] for member in training if member.diverged is None]:
            on_epoch(mean_row(rows))
    for member in members:
        if member.is_finished and member.diverged is None:
            member.network.load_state_dict(member.best_weights)


def _train_epoch(
    stack: Stack, members: Sequence[Member], epoch: int, train: TabularData, target: Target
) -> tuple[tuple[Tensor, Tensor], float]:
    """Train on every batch once; return mean loss and headline metric [K], and the last step's `lr_factor`."""
    settings, device = members[0].settings, train.y.device
    draws = Draws([member.seed for member in members], epoch, device)
    steps = math.ceil(len(train) / settings.rows_a_step)
    done = (epoch - 1) * steps
    optimizer = Optimizer(stack.blocks, [m.settings for m in members], [m.memory for m in members], steps=done)
    column = partial(torch.tensor, dtype=train.x_num.dtype, device=device)
    rates = [m.settings.label_smoothing for m in members]
    smoothing = column(rates).unsqueeze(1) if any(rates) else 0.0
    weights = class_weights(train.y, target.n_outputs) if settings.class_weights else None

    def objective(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        terms = (outputs, y, target.task, smoothing, weights)
        return losses.loss(*terms), losses.loss_gradient(*terms)

    factors = [lr_factor(done + step, steps * settings.n_epochs, settings) for step in range(steps)]
    lrs = column([[member.settings.lr] for member in members]) * column(factors).view(-1, 1, 1)
    shares = column(mixup_shares(settings.augment.mixup, steps, draws.keys))
    # Accumulated on the device: copying values in each step would stall it.
    total, scores = (torch.zeros(len(members), device=device, dtype=torch.float64) for _ in range(2))

    for step, batch in enumerate(batches(train, draws.order(len(train)), settings.rows_a_step)):
        loss, outputs, gradients = _backpropagate(stack, batch, settings, objective, draws, shares[step])
        if settings.clip is not None:
            clip_gradients(gradients, settings.clip)
        optimizer.step(gradients, lrs[step])
        total += loss * len(batch)
        scores += losses.row_scores(outputs, batch.y, target.task).sum(1)

    for member, state in zip(members, optimizer.states(), strict=True):
        member.memory = state
    return (total / len(train), losses.headline_of_mean(scores / len(train), target)), factors[-1]


def _backpropagate(
    stack: Stack, batch: TabularData, settings: Train, objective: Objective, draws: Draws, share: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Augment a batch; return its losses [K], outputs [K, B, n_outputs] and gradients."""
    augment = settings.augment
    x_num, x_cat = batch.x_num, batch.x_cat
    if augment.noise:
        x_num = x_num + augment.noise * draws.normal(x_num)
    if augment.swap:
        x_num, x_cat = swapped(x_num, augment.swap, draws), swapped(x_cat, augment.swap, draws)
    mixup = Mixup(draws.permutation(len(batch)), share) if augment.mixup else None
    outputs = stack(x_num, x_cat, stack.dropout_bits(len(batch), draws.dropout), mixup)
    loss, gradient = objective(outputs, batch.y)
    if mixup is not None:
        other_loss, other_gradient = objective(outputs, batch.y.gather(1, mixup.partner))
        loss, gradient = torch.lerp(other_loss, loss, share), torch.lerp(other_gradient, gradient, share.view(-1, 1, 1))
    return loss, outputs, stack.gradients(gradient)


def clip_gradients(gradients: Sequence[Tensor], limit: float) -> None:
    """Scale the gradients, blocks [K, P], in place to a joint norm of at most `limit` for each member."""
    norm = torch.stack([torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients]).norm(dim=0)
    for gradient in gradients:
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1))


def class_weights(y: Tensor, n_outputs: int) -> Tensor:
    """Return weights [classes] that give each class the same total: n / (classes * rows of the class)."""
    counts = torch.bincount(y, minlength=max(2, n_outputs)).clamp(min=1)
    return len(y) / (len(counts) * counts.float())


def shape_of(member: Member) -> tuple[object, ...]:
    """Return the properties that members of a stack share: layers, bin edges, and all settings but those in `OWN`."""
    layers = tuple("dropout" if isinstance(layer, nn.Dropout) else str(layer) for layer in member.network)
    weights = tuple((tuple(p.shape), p.requires_grad) for p in member.network.parameters())
    edges = tuple(tuple(column.tolist()) for column in edges_of(member.network))
    return layers, weights, edges, member.settings.model_dump_json(exclude=OWN)


def evaluate(networks: Sequence[nn.Sequential], data: TabularData, target: Target) -> dict[str, float]:
    """Compute loss and headline metric of the networks' joint prediction."""
    outputs = losses.joint(predict(networks, data), target.task)
    return {
        "loss": float(losses.loss(outputs, data.y, target.task)),
        task_metrics(target.task)[0]: float(losses.headline(outputs, data.y, target)),
    }
