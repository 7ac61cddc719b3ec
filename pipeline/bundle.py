"""A model on disk: safetensors and JSON, written whole, checked against its sums when read."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline import files, metrics, schema
from pipeline.config import Model
from pipeline.data import TabularData
from pipeline.errors import UserError
from pipeline.model import build_network
from pipeline.preprocessing import Preprocessor, fitted_names
from pipeline.schema import Schema, Target
from pipeline.training import Epoch, predict

WEIGHTS, DESCRIPTION, HISTORY = "model.safetensors", "model.json", "history.csv"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A trained network and all it needs to predict from raw columns.

    `target` is what this network predicts; `params` are the dotted parameters it was trained with.
    """

    network: nn.Sequential
    model: Model
    schema: Schema
    target: Target
    preprocessor: Preprocessor
    params: dict[str, Any]

    def predict(self, table: pd.DataFrame, where: str = "the table") -> pd.DataFrame:
        """Raw columns to `prediction`, and `probability_<class>` for each class, a row each.

        Raises `UserError` naming `where`, row and column of a value that does not fit the schema.
        """
        return self.predict_checked(schema.check(table, self.schema, where))

    def predict_checked(self, features: pd.DataFrame) -> pd.DataFrame:
        """`predict` for a table that `schema.check` returned."""
        x_num, x_cat = self.preprocessor.transform(features, self.schema)
        outputs = predict(self.network, TabularData(x_num, x_cat, torch.zeros(len(features))))
        predicted = metrics.predictions(outputs, self.target.task)
        if self.target.task == "regression":
            return pd.DataFrame({"prediction": predicted.double().numpy() * self.target.std + self.target.mean})
        labels = self.target.labels(predicted.argmax(1).numpy())
        chances = {f"probability_{name}": predicted[:, k].numpy() for k, name in enumerate(self.target.classes)}
        return pd.DataFrame({"prediction": labels, **chances})


def save_bundle(folder: Path, bundle: Bundle, history: list[Epoch]) -> None:
    """Write weights, history and description; the description last, since its sums make the bundle whole."""
    state = {f"network.{name}": tensor.cpu().contiguous() for name, tensor in bundle.network.state_dict().items()}
    numbers = {f"preprocessor.{name}": tensor for name, tensor in bundle.preprocessor.numbers.items()}
    files.write_bytes(folder / WEIGHTS, save(state | numbers))
    files.write_csv(folder / HISTORY, pd.DataFrame(history))
    body = {
        "format": FORMAT,
        "model": bundle.model.model_dump(mode="json"),
        "target": bundle.target.model_dump(mode="json"),
        "scaling": bundle.preprocessor.scaling,
        "params": bundle.params,
        "schema": bundle.schema.model_dump(mode="json"),
    }
    sums = {name: files.sha256(folder / name) for name in (WEIGHTS, HISTORY)} | {DESCRIPTION: _sum(body)}
    files.write_json(folder / DESCRIPTION, {"sha256": sums, **body})


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle; raises `UserError` naming the file that is missing, torn or changed."""
    for name in (DESCRIPTION, WEIGHTS, HISTORY):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a bundle: it has no {name}")
    body = _description(folder / DESCRIPTION)
    sums = body.pop("sha256")
    weights = (folder / WEIGHTS).read_bytes()
    for name, found in {
        DESCRIPTION: _sum(body),
        WEIGHTS: hashlib.sha256(weights).hexdigest(),
        HISTORY: files.sha256(folder / HISTORY),
    }.items():
        if sums.get(name) != found:
            raise UserError(
                f"{folder / name} is not what was saved: its SHA-256 is {found[:12]}…, not {str(sums.get(name))[:12]}…"
            )
    if body.get("format") != FORMAT:
        raise UserError(f"{folder} is a bundle of format {body.get('format')}; this version reads format {FORMAT}")
    try:
        return _build(body, load(weights))
    except (ValidationError, SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from None


def _description(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        body = json.loads(content)
        same = files.dump_json(body).encode() == content
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not what was saved: {error}") from None
    if not isinstance(body, dict) or not isinstance(body.get("sha256"), dict) or not same:
        raise UserError(f"{path} is not what was saved")
    return body


def _build(body: dict[str, Any], tensors: dict[str, Tensor]) -> Bundle:
    model = Model.model_validate_json(json.dumps(body["model"]))
    learned = Schema.model_validate_json(json.dumps(body["schema"]))
    target = Target.model_validate_json(json.dumps(body["target"]))
    network = build_network(model, learned, target.n_outputs, torch.Generator())
    network.load_state_dict(_under("network.", tensors))
    network.eval()
    numbers = _under("preprocessor.", tensors)
    if set(numbers) != set(fitted_names(body["scaling"], learned)):
        raise KeyError(f"its preprocessor lacks the numbers of scaling {body['scaling']}")
    preprocessor = Preprocessor(body["scaling"], numbers)
    return Bundle(network, model, learned, target, preprocessor, body["params"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sum(body: dict[str, Any]) -> str:
    return hashlib.sha256(files.dump_json(body).encode()).hexdigest()
