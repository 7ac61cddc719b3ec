"""What others do for the same job, each as its own documentation has it."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.tables import Table
from pipeline.core.settings import Config
from pipeline.networks.build import build_network
from pipeline.networks.device import generator
from pipeline.networks.modules import bin_edges

LR, MOMENTUM, DECAY, DROPOUT = 0.05, 0.9, 1e-5, 0.1
TEXTBOOK: dict[str, Any] = {
    "train__preset": "textbook", "train__lr": LR, "train__weight_decay": DECAY, "model__dropout": DROPOUT,
    "train__patience": None,
}  # fmt: skip


def mlp(d_in: int, hidden: tuple[int, ...], n_classes: int, dropout: float = DROPOUT) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(d_in, width), nn.ReLU(), nn.Dropout(dropout)]
        d_in = width
    return nn.Sequential(*layers, nn.Linear(d_in, n_classes))


def textbook(
    x: Tensor, y: Tensor, hidden: tuple[int, ...], batch_size: int, epochs: int = 1, lr: float = LR, momentum: float = MOMENTUM,
    dropout: float = DROPOUT,
) -> tuple[nn.Sequential, float]:  # fmt: skip
    """The loop that courses teach; the network and its last mean loss."""
    model = mlp(x.shape[1], hidden, int(y.max()) + 1, dropout)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=DECAY)
    criterion = nn.CrossEntropyLoss()
    for _ in range(epochs):
        model.train()
        total = 0.0
        for features, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(features), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return model, total / len(loader)


def textbook_search(table: Table, hidden: tuple[int, ...], batch_size: int, epochs: int, n_trials: int) -> float:
    """Seconds that Optuna's own `optimize` takes over the textbook loop."""
    x, y = table.one_hot("train")
    x_val, y_val = table.one_hot("val")

    def objective(trial: optuna.Trial) -> float:
        model, _ = textbook(
            x, y, hidden, batch_size, epochs,
            trial.suggest_float("lr", 1e-2, 3e-1, log=True), trial.suggest_float("momentum", 0.85, 0.99),
            trial.suggest_float("dropout", 0.0, 0.3),
        )  # fmt: skip
        model.eval()
        with torch.no_grad():
            return float((model(x_val).argmax(1) == y_val).float().mean())

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    return timed(lambda: study.optimize(objective, n_trials=n_trials))


def bare(table: Table, settings: Config) -> None:
    """The same network over the same tensors: an epoch with nothing measured, logged or kept."""
    data = table.splits["train"]
    edges = bin_edges(data.x_num, settings.model.bins) if settings.model.numeric == "ple" else ()
    network = build_network(settings.model, table.schema, table.schema.target.n_outputs, generator(0), edges).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
    for rows in torch.randperm(len(data)).split(settings.train.rows_a_step):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network((data.x_num[rows], data.x_cat[rows])), data.y[rows]).backward()
        optimizer.step()


def skorch_epoch(x: Tensor, y: Tensor, hidden: tuple[int, ...], batch_size: int) -> None:
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        mlp(x.shape[1], hidden, int(y.max()) + 1), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=LR,
        optimizer__momentum=MOMENTUM, optimizer__weight_decay=DECAY, batch_size=batch_size, max_epochs=1,
        iterator_train__shuffle=True, train_split=None, verbose=0,
    )  # fmt: skip
    net.fit(x, y)


def sklearn_epoch(x: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], batch_size: int) -> None:
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one epoch has not converged
        MLPClassifier(
            hidden,
            solver="sgd",
            learning_rate_init=LR,
            momentum=MOMENTUM,
            alpha=DECAY,
            batch_size=batch_size,
            max_iter=1,
        ).fit(x, y)


def lightning_epoch(x: Tensor, y: Tensor, hidden: tuple[int, ...], batch_size: int) -> None:
    import lightning

    class Classifier(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = mlp(x.shape[1], hidden, int(y.max()) + 1)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            accelerator="cpu",
        )  # fmt: skip
        trainer.fit(Classifier(), DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True))


def tabm(table: Table, seed: int, minutes: float) -> dict[str, Any]:
    """TabM with piecewise-linear embeddings, trained as its README does, for at most so many minutes; test accuracy."""
    import rtdl_num_embeddings
    from tabm import TabM

    torch.manual_seed(seed)
    train, val, test = (table.splits[name] for name in ("train", "val", "test"))
    k_out = len(table.schema.target.classes)
    bins = rtdl_num_embeddings.compute_bins(train.x_num, n_bins=48)
    embeddings = rtdl_num_embeddings.PiecewiseLinearEmbeddings(bins, d_embedding=16, activation=False, version="B")
    model = TabM.make(
        n_num_features=train.x_num.shape[1], cat_cardinalities=list(table.schema.cardinalities), d_out=k_out,
        num_embeddings=embeddings,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=3e-4)

    def accuracy(data: Any) -> float:
        model.eval()
        with torch.inference_mode():
            parts = [
                model(x_num, x_cat.long()).softmax(-1).mean(1).argmax(1)
                for x_num, x_cat in zip(data.x_num.split(4096), data.x_cat.split(4096), strict=True)
            ]
        return float((torch.cat(parts) == data.y).float().mean())

    best, at_best, waited, epochs, start = 0.0, 0.0, 0, 0, time.perf_counter()
    while waited < 16 and time.perf_counter() - start < 60 * minutes:
        model.train()
        for rows in torch.randperm(len(train)).split(256):
            batch = train.take(rows)
            outputs = model(batch.x_num, batch.x_cat.long())
            loss = nn.functional.cross_entropy(outputs.flatten(0, 1), batch.y.repeat_interleave(outputs.shape[1]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if time.perf_counter() - start > 60 * minutes:
                break
        epochs, score = epochs + 1, accuracy(val)
        if score > best:
            best, at_best, waited = score, accuracy(test), 0
        else:
            waited += 1
    return {"accuracy": at_best, "epochs": epochs}


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
