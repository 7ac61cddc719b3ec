"""A model on disk: safetensors and JSON, written atomically, verified by checksum when read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.settings import Model
from pipeline.networks import losses
from pipeline.networks.build import build_network, n_parameters
from pipeline.networks.stack import predict
from pipeline.tables import preprocessing, validation
from pipeline.tables.preprocessing import Preprocessor, Scaling
from pipeline.tables.schema import Schema, Target
from pipeline.tables.tensors import TabularData, check_fit

WEIGHTS, DESCRIPTION, HISTORY = "model.safetensors", "model.json", "history.csv"
FORMAT = 2


@dataclass(frozen=True)
class Bundle:
    """A trained ensemble and everything it needs to predict from raw columns.

    `members` are networks of one shape whose predictions are averaged; `params` are the dotted parameters they were
    trained with. Outputs are divided by `temperature`.
    """

    members: tuple[nn.Sequential, ...]
    model: Model
    schema: Schema
    target: Target
    preprocessor: Preprocessor
    params: dict[str, Any]
    temperature: float = 1.0

    def outputs(self, data: TabularData) -> Tensor:
        """Compute the joint outputs [n, n_outputs] of all members, before the temperature."""
        check_fit(data, self.schema, "the prepared table")
        return losses.joint(predict(self.members, data), self.target.task)

    def predict(self, table: pd.DataFrame, where: str = "the table") -> pd.DataFrame:
        """Predict each row of raw columns: `prediction`, and `probability_<class>` for each class.

        Raises `UserError` naming `where`, row and column of a value that does not fit the schema.
        """
        return self.predict_checked(validation.check(table, self.schema, where))

    def predict_checked(self, features: pd.DataFrame) -> pd.DataFrame:
        """Predict from a table that `validation.check` returned."""
        x_num, x_cat = self.preprocessor.transform(features, self.schema)
        outputs = self.outputs(TabularData(x_num, x_cat, torch.zeros(len(features)))) / self.temperature
        predicted = losses.predictions(outputs, self.target.task)
        if self.target.task == "regression":
            return pd.DataFrame({"prediction": predicted.double().numpy() * self.target.std + self.target.mean})
        labels = self.target.labels(predicted.argmax(1).numpy())
        probabilities = {f"probability_{name}": predicted[:, k].numpy() for k, name in enumerate(self.target.classes)}
        return pd.DataFrame({"prediction": labels, **probabilities})


def save_bundle(folder: Path, bundle: Bundle, history: Sequence[Mapping[str, float]]) -> None:
    """Write weights, history and description; the description last, since its checksums complete the bundle."""
    state = {
        f"{_prefix(k, len(bundle.members))}{name}": tensor.cpu().contiguous()
        for k, member in enumerate(bundle.members)
        for name, tensor in member.state_dict().items()
    }
    numbers = {f"preprocessor.{name}": tensor for name, tensor in bundle.preprocessor.numbers.items()}
    files.write_bytes(folder / WEIGHTS, save(state | numbers))
    files.write_csv(folder / HISTORY, pd.DataFrame(history))
    body = {
        "format": FORMAT,
        "model": bundle.model.model_dump(mode="json"),
        "target": bundle.target.model_dump(mode="json"),
        "temperature": bundle.temperature,
        "scaling": bundle.preprocessor.scaling,
        "params": bundle.params,
        "schema": bundle.schema.model_dump(mode="json"),
    }
    checksums = {name: files.sha256(folder / name) for name in (WEIGHTS, HISTORY)} | {DESCRIPTION: _checksum(body)}
    files.write_json(folder / DESCRIPTION, {"sha256": checksums, **body})


def copy_bundle(source: Path, folder: Path) -> None:
    """Copy the files of a bundle, the description last."""
    for name in (WEIGHTS, HISTORY, DESCRIPTION):
        files.copy(source / name, folder / name)


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle; raises `UserError` naming a file that is missing, damaged or changed."""
    for name in (DESCRIPTION, WEIGHTS, HISTORY):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a bundle: it has no {name}")
    body = _read_description(folder / DESCRIPTION)
    checksums, weights = body.pop("sha256"), (folder / WEIGHTS).read_bytes()
    found = {
        DESCRIPTION: _checksum(body),
        WEIGHTS: hashlib.sha256(weights).hexdigest(),
        HISTORY: files.sha256(folder / HISTORY),
    }
    for name, checksum in found.items():
        if checksums.get(name) != checksum:
            saved = str(checksums.get(name))[:12]
            raise UserError(f"{folder / name} was changed after it was saved: SHA-256 {saved}… became {checksum[:12]}…")
    if body.get("format") != FORMAT:
        raise UserError(f"{folder} must have bundle format {FORMAT}, got format {body.get('format')}: run dvc repro")
    # Checksums detect accidents; an attacker can recompute them, so all content is checked below.
    try:
        described = _Description.model_validate_json(json.dumps(body))
        return _build(folder, described, files.parse_tensors(folder / WEIGHTS, weights))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{folder} cannot be loaded: {place}: {first['msg']}"[:300]) from None
    except RuntimeError as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from None


class _Description(BaseModel):
    """`model.json` without its checksums."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    format: int
    model: Model
    target: Target
    temperature: Annotated[float, Field(gt=0)]
    scaling: Scaling
    params: dict[Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$")], Any]
    table: Annotated[Schema, Field(alias="schema")]  # pydantic models have a method `schema`


def _read_description(path: Path) -> dict[str, Any]:
    content = files.json_bytes(path)
    try:
        body = json.loads(content)
        unchanged = files.dump_json(body).encode() == content
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} was changed after it was saved: {error}") from None
    if not unchanged or not isinstance(body, dict) or not isinstance(body.get("sha256"), dict):
        raise UserError(f"{path} was changed after it was saved")
    return body


def _build(folder: Path, described: _Description, tensors: dict[str, Tensor]) -> Bundle:
    model, schema, target = described.model, described.table, described.target
    if model.ensemble == "auto":
        raise RuntimeError("model.ensemble must be a number, got auto")
    states = [_with_prefix(_prefix(k, model.n_members), tensors) for k in range(model.n_members)]
    members = tuple(_build_member(state, model, schema, target) for state in states)
    numbers = _with_prefix("preprocessor.", tensors)
    preprocessor = preprocessing.checked(folder / WEIGHTS, described.scaling, numbers, schema)
    return Bundle(members, model, schema, target, preprocessor, described.params, described.temperature)


def _build_member(state: dict[str, Tensor], model: Model, schema: Schema, target: Target) -> nn.Sequential:
    edges = _read_edges(state, schema.d_num) if model.numeric == "ple" and schema.d_num else ()
    weights = [tensor for name, tensor in state.items() if not name.endswith(_EDGES)]
    # Counted before the network is built: a forged description must not allocate more than the file holds.
    expected = n_parameters(model, schema, target.n_outputs, sum(len(column) - 1 for column in edges))
    fits = sum(tensor.numel() for tensor in weights) == expected and len(weights) > len(model.hidden)
    if not fits or any(tensor.dtype != torch.float32 for tensor in weights):
        raise RuntimeError(f"the weights in {WEIGHTS} do not fit the network in {DESCRIPTION}")
    network = build_network(model, schema, target.n_outputs, torch.Generator(), edges)
    network.load_state_dict(state)
    return network.eval()


_EDGES = (".edges", ".counts")  # the buffers of `PiecewiseLinear`


def _read_edges(state: dict[str, Tensor], d_num: int) -> tuple[Tensor, ...]:
    """Return the bin edges of each numeric column, from the buffers of `PiecewiseLinear`."""
    edges, counts = (next((t for name, t in state.items() if name.endswith(end)), torch.empty(0)) for end in _EDGES)
    typed = edges.dtype == torch.float32 and counts.dtype == torch.int64
    valid = typed and edges.dim() == 1 and counts.shape == (d_num,) and bool(edges.isfinite().all())
    if not valid or counts.min() < 2 or counts.max() > len(edges) or counts.sum() != len(edges):
        raise RuntimeError(f"{WEIGHTS} must hold the bin edges of {d_num} numeric columns")
    parts: tuple[Tensor, ...] = edges.split(counts.tolist())
    return parts


def _prefix(k: int, n_members: int) -> str:
    return "network." if n_members == 1 else f"network.{k}."


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(files.dump_json(body).encode()).hexdigest()
