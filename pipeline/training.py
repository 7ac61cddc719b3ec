"""`fit`, the one training loop, and `predict`."""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import metrics
from pipeline.config import Augment, Train
from pipeline.data import TabularData, batches, generator
from pipeline.errors import DivergedError, UserError
from pipeline.model import Dropout
from pipeline.schema import Target

PREDICT_ROWS = 8192
OVERFITTING_GAP = 0.1  # of the validation loss
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1e-4  # of the peak, at the first and the last step

Epoch = dict[str, float]  # one row of history.csv; "epoch" counts from 1
Objective = Callable[[Tensor, Tensor], Tensor]  # outputs [B, n_outputs], y [B] to the mean loss
OnEpoch = Callable[[Epoch], object]  # a true answer ends training after this epoch


@dataclass(frozen=True)
class Fit:
    """How a training went; the network it is about holds the weights of `best_epoch`."""

    history: list[Epoch]
    best_epoch: int

    @property
    def best(self) -> Epoch:
        return self.history[self.best_epoch - 1]


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
    network: nn.Sequential,
    train: TabularData,
    val: TabularData,
    settings: Train,
    target: Target,
    *,
    seed: int,
    on_epoch: OnEpoch = lambda epoch: None,
) -> Fit:
    """Train `network` in place on `train` and leave it with the weights of the epoch that was best on `val`.

    Best is the lowest validation loss. Network and data are on one device. What epoch e draws is a function of
    (seed, e) alone. Raises `DivergedError` if a loss is not finite.
    """
    device = train.y.device
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = _optimizer(trained, settings)
    weights = class_weights(train.y, target.n_outputs) if settings.class_weights else None
    objective = partial(metrics.loss, task=target.task, smoothing=settings.label_smoothing, weights=weights)
    steps = math.ceil(len(train) / settings.batch_size)
    history: list[Epoch] = []
    best_loss, best_epoch, best_state = math.inf, 0, _copy(network)

    for epoch in range(1, settings.epochs + 1):
        order = generator(seed, epoch)
        draws = generator(seed, epoch, 1, device=device)
        shares = mixup_shares(settings.augment.mixup, steps, (seed, epoch))
        _draw_dropout_from(network, draws)
        network.train()
        total_loss = torch.zeros((), device=device)
        total_norm = torch.zeros((), device=device)
        predicted, y_seen = [], []
        for step, rows in enumerate(batches(len(train), settings.batch_size, order), start=(epoch - 1) * steps):
            batch = train.take(rows.to(device))
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * lr_factor(step, steps * settings.epochs, settings)
            loss, outputs = _forward(network, batch, settings.augment, objective, draws, shares[step % steps])
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
            if settings.clip is not None:
                nn.utils.clip_grads_with_norm_(trained, settings.clip, norm)
            total_norm += norm
            optimizer.step()
            total_loss += loss.detach() * len(rows)
            predicted.append(_point(outputs.detach(), target))
            y_seen.append(batch.y)

        row: Epoch = {"epoch": epoch, "train_loss": float(total_loss) / len(train)}
        row |= _named("train", _headline(torch.cat(predicted), torch.cat(y_seen), target))
        scores = _named("val", evaluate(network, val, target))
        lr = optimizer.param_groups[0]["lr"]
        # Loss, the headline metric and lr first, as history.csv has it; then the rest.
        row |= dict(list(scores.items())[:2]) | {"lr": lr, "grad_norm": float(total_norm) / steps} | scores
        if not (math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])):
            raise DivergedError(
                f"the loss is no longer finite in epoch {epoch} at lr {row['lr']:g}: try a smaller train.lr, or train.clip"
            )
        history.append(row)
        if row["val_loss"] < best_loss:
            best_loss, best_epoch, best_state = row["val_loss"], epoch, _copy(network)
        patience_over = settings.patience is not None and epoch - best_epoch >= settings.patience
        if on_epoch(row) or patience_over:
            break

    network.load_state_dict(best_state)
    _draw_dropout_from(network, None)
    return Fit(history, best_epoch)


@torch.no_grad()
def predict(network: nn.Sequential, data: TabularData) -> Tensor:
    """Raw outputs [n, n_outputs] of the network for the rows of `data`."""
    network.eval()
    chunks = zip(data.x_num.split(PREDICT_ROWS), data.x_cat.split(PREDICT_ROWS), strict=True)
    return torch.cat([network(chunk) for chunk in chunks])


def evaluate(network: nn.Sequential, data: TabularData, target: Target) -> dict[str, float]:
    """Loss and metrics of the network on `data`."""
    outputs = predict(network, data)
    scores = metrics.score(metrics.predictions(outputs, target.task), data.y, target.task, target.std)
    return {"loss": float(metrics.loss(outputs, data.y, target.task)), **scores}


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
    network = copy.deepcopy(network)
    batch = _distinct_rows(train, settings.overfit.rows, seed)
    if target.task == "regression" and float(batch.y.var(correction=0)) == 0:
        return []  # a batch of equal targets has nothing to learn by heart
    plain = _by_heart(settings, settings.overfit.steps, len(batch))
    goal = 0.01 * float(batch.y.var(correction=0)) if target.task == "regression" else None

    def learnt(epoch: Epoch) -> bool:
        return epoch["val_loss"] < goal if goal is not None else epoch["val_accuracy"] == 1.0

    for layer in network:
        if isinstance(layer, Dropout):
            layer.p = 0.0
    history = fit(network, batch, batch, plain, target, seed=seed, on_epoch=learnt).history
    if not learnt(history[-1]):
        reached = (
            f"loss {history[-1]['val_loss']:.3g}, wanted below {goal:.3g}"
            if goal is not None
            else f"accuracy {history[-1]['val_accuracy']:.3f}, wanted 1.0"
        )
        raise UserError(
            f"overfit check: {len(history)} steps on one batch of {len(batch)} rows reached {reached}. Usually train.lr is"
            " too small or too large, model.hidden too narrow, model.init zeros, or equal rows have different targets;"
            " train.overfit: null turns the check off"
        )
    return history


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


def _optimizer(parameters: list[nn.Parameter], settings: Train) -> torch.optim.Optimizer:
    lr, decay = settings.lr, settings.weight_decay
    match settings.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr, momentum=settings.momentum, weight_decay=decay, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, weight_decay=decay, fused=True)


def _forward(
    network: nn.Sequential,
    batch: TabularData,
    augment: Augment,
    objective: Objective,
    draws: torch.Generator,
    share: float,
) -> tuple[Tensor, Tensor]:
    """The loss of an augmented batch, and the outputs [B, n_outputs] it comes from."""
    inputs = _noised(batch, augment, draws)
    if not augment.mixup:
        outputs = network(inputs)
        return objective(outputs, batch.y), outputs
    # mixup (Zhang et al. 2018, eq. 1). The first layer is linear: mixing what comes out of it mixes the rows that go in.
    partner = torch.randperm(len(batch), generator=draws, device=batch.y.device)
    hidden = network[0](inputs)
    outputs = network[1:](torch.lerp(hidden[partner], hidden, share))
    return share * objective(outputs, batch.y) + (1 - share) * objective(outputs, batch.y[partner]), outputs


def mixup_shares(alpha: float, steps: int, key: tuple[int, int]) -> np.ndarray:
    """[steps] draws from Beta(alpha, alpha): how much of a row is itself, the rest being its partner."""
    return np.random.default_rng((*key, 2)).beta(alpha, alpha, steps) if alpha else np.ones(steps)


def _noised(batch: TabularData, augment: Augment, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """x_num and x_cat with Gaussian noise, and with cells swapped for those of other rows of the batch."""
    x_num, x_cat = batch.x_num, batch.x_cat
    if augment.noise:
        x_num = x_num + augment.noise * torch.empty_like(x_num).normal_(generator=draws)
    if augment.swap:
        x_num, x_cat = _swapped(x_num, augment.swap, draws), _swapped(x_cat, augment.swap, draws)
    return x_num, x_cat


def _swapped(x: Tensor, probability: float, draws: torch.Generator) -> Tensor:
    from_rows = torch.randint(len(x), x.shape, generator=draws, device=x.device)
    here = torch.empty(x.shape, device=x.device).bernoulli_(probability, generator=draws).bool()
    return torch.where(here, x.gather(0, from_rows), x)


def _point(outputs: Tensor, target: Target) -> Tensor:
    """What one number a row says: the predicted class, or the value."""
    return outputs.squeeze(1) if target.task == "regression" else metrics.predictions(outputs, target.task).argmax(1)


def _headline(predicted: Tensor, y: Tensor, target: Target) -> dict[str, float]:
    if target.task == "regression":
        return {"rmse": metrics.score(predicted, y, target.task, target.std)["rmse"]}
    return {"accuracy": metrics.accuracy(predicted, y)}


def _copy(network: nn.Sequential) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _draw_dropout_from(network: nn.Sequential, draws: torch.Generator | None) -> None:
    for layer in network:
        if isinstance(layer, Dropout):
            layer.generator = draws


def _named(prefix: str, scores: dict[str, float]) -> Epoch:
    return {f"{prefix}_{name}": value for name, value in scores.items()}
