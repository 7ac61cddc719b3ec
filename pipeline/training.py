"""`fit`, the one training loop, and `predict`."""

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import metrics
from pipeline.data import TabularData, batches, generator
from pipeline.errors import DivergedError, UserError
from pipeline.layers import Mixup
from pipeline.model import bin_edges, build_network, edges_of
from pipeline.optimizers import Optimizer, State
from pipeline.schema import Schema, Target
from pipeline.settings import Config, Task, Train
from pipeline.stack import Stack

PREDICT_NUMBERS, PREDICT_ROWS = 16_000_000, 8192  # that a layer holds while rows are predicted; rows at once, at most
OVERFITTING_GAP = 0.1  # of the validation loss
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1e-4  # of the peak, at the first and the last step
OWN = {"lr", "momentum", "weight_decay", "label_smoothing", "patience"}  # what the members of a stack may differ in

Epoch = dict[str, float]  # one row of history.csv; "epoch" counts from 1
OnEpoch = Callable[[Epoch], object]  # gets the mean row of the members that trained; a true answer ends training
Score = Callable[[Tensor, Tensor, Target], dict[str, float]]  # outputs [n, n_outputs], y [n] to metrics


@dataclass(frozen=True)
class Objective:
    """What the members of a stack make small: the loss, each with its own `smoothing` [K, 1] where there is any."""

    task: Task
    smoothing: float | Tensor
    weights: Tensor | None

    def __call__(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean losses [K] of outputs [K, B, n_outputs] for y [K or 1, B], and their gradients."""
        terms = (outputs, y, self.task, self.smoothing, self.weights)
        return metrics.loss(*terms), metrics.loss_gradient(*terms)


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


def use(device: str, threads: int) -> torch.device:
    """Set the threads of torch; the device that `device` names. Raises `UserError` for cuda where there is none."""
    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch finds no GPU here: set device to auto or cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")  # where the operations used here are deterministic as they are
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(True)
    # A check for bugs that would cost time at every dropout.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda")


def fit(
    members: Sequence[Member],
    train: TabularData,
    val: TabularData,
    target: Target,
    *,
    until: int | None = None,
    on_epoch: OnEpoch = lambda row: None,
    score: Score = metrics.score_outputs,
) -> None:
    """Train members of one shape side by side, each as if it were alone, until they are over or have `until` epochs.

    Best is the lowest validation loss. Networks and data are on one device; `score` says what is measured on validation
    rows besides the loss. Members that have begun go on from where they are.
    """
    assert len({(len(member.history), shape_of(member)) for member in members if not member.over}) <= 1
    stopped = False
    while not stopped and (
        learning := [m for m in members if not m.over and (until is None or len(m.history) < until)]
    ):
        epoch = len(learning[0].history) + 1
        stack = Stack([member.network for member in learning])
        trained = _train_epoch(stack, learning, epoch, train, target)
        stack.write([member.network for member in learning])
        outputs = _outputs(stack, val)
        losses = metrics.loss(outputs, val.y, target.task).tolist()
        for member, begun, loss, own in zip(learning, trained, losses, outputs, strict=True):
            scores = {f"val_{name}": value for name, value in score(own, val.y, target).items()}
            # Loss, the headline metric and lr first, as history.csv has it; then the rest.
            seen = {name: begun.pop(name) for name in ("lr", "grad_norm")}
            member.add({"epoch": epoch, **begun, "val_loss": loss, **dict(list(scores.items())[:1]), **seen, **scores})
        rows = [member.history[-1] for member in learning if member.diverged is None]
        stopped = bool(rows and on_epoch(mean_row(rows)))
    for member in members:
        if (member.over or stopped) and member.diverged is None:
            member.network.load_state_dict(member.best_weights)


def _train_epoch(
    stack: Stack, members: Sequence[Member], epoch: int, train: TabularData, target: Target
) -> list[Epoch]:
    """Every batch once. Nothing is read from the device before the epoch is over."""
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
    losses, scores, norms = (torch.zeros(size, device=device, dtype=torch.float64) for _ in range(3))

    for step, batch in enumerate(batches(train, draws.order(len(train)), settings.rows_a_step)):
        loss, outputs, gradients = _learn(stack, batch, settings, objective, draws, shares[step])
        norm = torch.stack([torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients]).norm(dim=0)
        if settings.clip is not None:
            for gradient in gradients:
                gradient.mul_((settings.clip / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1))
        optimizer.step(gradients, lrs[step])
        losses += loss * len(batch)
        scores += metrics.row_scores(outputs, batch.y, target.task).sum(1)
        norms += norm

    for member, state in zip(members, optimizer.states(), strict=True):
        member.memory = state
    headline = metrics.headline(scores / len(train), target)
    measured = {"train_loss": losses / len(train), **headline, "grad_norm": norms / steps}
    rows = torch.stack(list(measured.values()), 1).tolist()
    return [
        {**dict(zip(measured, row, strict=True)), "lr": m.settings.lr * factors[-1]}
        for m, row in zip(members, rows, strict=True)
    ]


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


def predict(networks: Sequence[nn.Sequential], data: TabularData) -> Tensor:
    """Raw outputs [K, n, n_outputs] of networks of one shape for the rows of `data`."""
    return _outputs(Stack(networks), data)


def _outputs(stack: Stack, data: TabularData) -> Tensor:
    rows = min(max(PREDICT_NUMBERS // stack.width, 1), PREDICT_ROWS)
    chunks = zip(data.x_num.split(rows), data.x_cat.split(rows), strict=True)
    return torch.cat([stack(x_num.unsqueeze(0), x_cat.unsqueeze(0)) for x_num, x_cat in chunks], 1)


def evaluate(networks: Sequence[nn.Sequential], data: TabularData, target: Target) -> dict[str, float]:
    """Loss and metrics of the networks' joint prediction on `data`."""
    outputs = metrics.joint(predict(networks, data), target.task)
    return {"loss": float(metrics.loss(outputs, data.y, target.task)), **metrics.score_outputs(outputs, data.y, target)}


def lr_factor(step: int, steps: int, settings: Train) -> float:
    """The learning rate of a step, from 0 to `steps` - 1, as a share of `lr`.

    constant and cosine (Loshchilov & Hutter 2017, eq. 5) rise linearly over the share `warmup` of the steps; onecycle
    (Smith & Topin 2018, with cosine arms as in torch's OneCycleLR) has its peak there.
    """
    last = max(steps - 1, 1)
    if settings.schedule == "onecycle":
        peak = max(settings.warmup * steps - 1, 0)
        if step < peak:
            return _cosine_arm(ONECYCLE_START, 1.0, step / peak)
        return _cosine_arm(1.0, ONECYCLE_START * ONECYCLE_END, (step - peak) / (last - peak) if last > peak else 0.0)
    rising = settings.warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if settings.schedule == "cosine":
        return _cosine_arm(1.0, 0.0, (step - rising) / max(steps - rising, 1))
    return 1.0


def _cosine_arm(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def class_weights(y: Tensor, n_outputs: int) -> Tensor:
    """[classes] weights that give each class the same total: n / (classes * rows of the class)."""
    counts = torch.bincount(y, minlength=max(2, n_outputs)).clamp(min=1)
    return len(y) / (len(counts) * counts.float())


def overfit_check(
    network: nn.Sequential, train: TabularData, settings: Train, target: Target, *, seed: int
) -> list[Epoch]:
    """Train a copy of `network` on one batch until it is learnt by heart; its history, a row a step.

    Augmentation and regularisation are off, the optimiser and its settings are those of the training to come. Rows
    that the network cannot tell apart are left out of the batch. Raises `UserError` if accuracy 1.0 (regression: a
    loss under 1 % of the batch's variance) is not reached in `overfit.steps` steps.
    """
    if settings.overfit is None:
        return []
    batch = _distinct_rows(train, settings.overfit.rows, seed)
    if target.task == "regression" and float(batch.y.var(correction=0)) == 0:
        return []  # a batch of equal targets has nothing to learn by heart
    copied = copy.deepcopy(network)
    for layer in copied:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    member = Member(copied, _by_heart(settings, settings.overfit.steps, len(batch)), seed)
    goal = 0.01 * float(batch.y.var(correction=0)) if target.task == "regression" else None

    def learnt(row: Epoch) -> bool:
        return row["val_loss"] < goal if goal is not None else row["val_accuracy"] == 1.0

    fit([member], batch, batch, target, on_epoch=learnt)
    if member.diverged is not None:
        raise DivergedError(member.diverged)
    last = member.history[-1]
    if not learnt(last):
        reached = (
            f"loss {last['val_loss']:.3g}, wanted below {goal:.3g}"
            if goal is not None
            else f"accuracy {last['val_accuracy']:.3f}, wanted 1.0"
        )
        raise UserError(
            f"overfit check: {len(member.history)} steps on one batch of {len(batch)} rows reached {reached}. Usually train.lr is"
            " too small or too large, model.hidden too narrow, model.init zeros, or equal rows have different targets;"
            " train.overfit: null turns the check off"
        )
    return member.history


def _by_heart(settings: Train, steps: int, n_rows: int) -> Train:
    """`settings` for a batch to be learnt by heart: a step an epoch, nothing that holds the network back."""
    free = {"weight_decay": 0.0, "label_smoothing": 0.0, "class_weights": None, "schedule": "constant", "warmup": 0.0}
    augment = settings.augment.model_copy(update={"noise": 0.0, "swap": 0.0, "mixup": 0.0})
    shape = {"augment": augment, "epochs": steps, "patience": None, "batch_size": n_rows}
    return settings.model_copy(update=free | shape)


def _distinct_rows(data: TabularData, n: int, seed: int) -> TabularData:
    """`n` random rows, or as many as differ in what the network sees."""
    drawn = data.take(torch.randperm(len(data), generator=generator(seed, 0))[: 4 * n].to(data.y.device))
    seen = torch.cat([drawn.x_num, drawn.x_cat.float()], 1).round(decimals=2)
    _, kinds = seen.unique(dim=0, return_inverse=True)
    first: dict[int, int] = {}
    for row, kind in enumerate(kinds.tolist()):
        first.setdefault(kind, row)
    return drawn.take(torch.tensor(list(first.values())[:n], device=data.y.device))


def gap(train: dict[str, float], val: dict[str, float]) -> str:
    """The distance between the losses on training and validation rows in words, named where it means overfitting."""
    distance = val["loss"] - train["loss"]
    says = f"loss {train['loss']:.4f} on training rows, {val['loss']:.4f} on validation rows, gap {distance:+.4f}"
    if distance > OVERFITTING_GAP * val["loss"]:
        says += ": overfitting; more dropout, more weight decay or a smaller network may help"
    return says


# --------------------------------------------------------------------------------------------------------- the parts


class Draws:
    """The random numbers of an epoch: of each member, or once where all members have one seed."""

    def __init__(self, seeds: Sequence[int], epoch: int, device: torch.device) -> None:
        own = list(seeds) if len(set(seeds)) > 1 else [seeds[0]]
        self.keys = [(seed, epoch) for seed in own]
        self.device = device
        self._generators = [generator(*key, 1, device=device) for key in self.keys]
        # Of their own, since a member that drops nothing draws none of them.
        self.dropout = [generator(*key, 2, device=device) for key in self.keys]

    def order(self, n: int) -> Tensor:
        """[keys, n] rows in random order."""
        return torch.stack([torch.randperm(n, generator=generator(*key)) for key in self.keys]).to(self.device)

    def permutation(self, n: int) -> Tensor:
        return self._each(lambda draws: torch.randperm(n, generator=draws, device=self.device))

    def normal(self, like: Tensor) -> Tensor:
        return self._each(lambda draws: torch.empty_like(like[0]).normal_(generator=draws))

    def integers(self, high: int, like: Tensor) -> Tensor:
        return self._each(lambda draws: torch.randint(high, like.shape[1:], generator=draws, device=self.device))

    def chances(self, probability: float, like: Tensor) -> Tensor:
        """True with that probability."""
        return self._each(
            lambda draws: torch.empty(like.shape[1:], device=self.device).bernoulli_(probability, generator=draws)
        ).bool()

    def _each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(draws) for draws in self._generators])


def _learn(
    stack: Stack, batch: TabularData, settings: Train, objective: Objective, draws: Draws, share: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The losses [K] of an augmented batch, the outputs [K, B, n_outputs] they come from, and the gradients."""
    augment = settings.augment
    x_num, x_cat = batch.x_num, batch.x_cat
    if augment.noise:
        x_num = x_num + augment.noise * draws.normal(x_num)
    if augment.swap:
        x_num, x_cat = _swapped(x_num, augment.swap, draws), _swapped(x_cat, augment.swap, draws)
    mixup = Mixup(draws.permutation(len(batch)), share) if augment.mixup else None
    outputs = stack(x_num, x_cat, stack.dropout_words(len(batch), draws.dropout), mixup)
    loss, gradient = objective(outputs, batch.y)
    if mixup is not None:
        other_loss, other_gradient = objective(outputs, batch.y.gather(1, mixup.partner))
        loss, gradient = torch.lerp(other_loss, loss, share), torch.lerp(other_gradient, gradient, share.view(-1, 1, 1))
    return loss, outputs, stack.gradients(gradient)


def mixup_shares(alpha: float, steps: int, keys: Sequence[tuple[int, int]]) -> np.ndarray:
    """[steps, keys] draws from Beta(alpha, alpha): how much of a row is itself, the rest being its partner."""
    own = [np.random.default_rng((*key, 2)).beta(alpha, alpha, steps) if alpha else np.ones(steps) for key in keys]
    return np.stack(own, 1)


def _swapped(x: Tensor, probability: float, draws: Draws) -> Tensor:
    from_rows = draws.integers(x.shape[1], x)
    return torch.where(draws.chances(probability, x), x.gather(1, from_rows), x)
