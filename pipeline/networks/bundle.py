"""A model on disk: safetensors and JSON, written whole, checked against its sums when read."""

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
    """A trained network and all it needs to predict from raw columns.

    `members` are its networks, of one shape, whose predictions are averaged; `target` is what they predict; `params` are
    the dotted parameters they were trained with. Outputs are divided by `temperature`.
    """

    members: tuple[nn.Sequential, ...]
    model: Model
    schema: Schema
    target: Target
    preprocessor: Preprocessor
    params: dict[str, Any]
    temperature: float = 1.0

    @property
    def network(self) -> nn.Sequential:
        """The network of a bundle that has one."""
        (only,) = self.members
        return only

    def outputs(self, data: TabularData) -> Tensor:
        """Outputs [n, n_outputs] of all members jointly, before the temperature."""
        check_fit(data, self.schema, "the prepared table")
        return losses.joint(predict(self.members, data), self.target.task)

    def predict(self, table: pd.DataFrame, where: str = "the table") -> pd.DataFrame:
        """Raw columns to `prediction`, and `probability_<class>` for each class, a row each.

        Raises `UserError` naming `where`, row and column of a value that does not fit the schema.
        """
        return self.predict_checked(validation.check(table, self.schema, where))

    def predict_checked(self, features: pd.DataFrame) -> pd.DataFrame:
        """`predict` for a table that `schema.check` returned."""
        x_num, x_cat = self.preprocessor.transform(features, self.schema)
        outputs = self.outputs(TabularData(x_num, x_cat, torch.zeros(len(features)))) / self.temperature
        predicted = losses.predictions(outputs, self.target.task)
        if self.target.task == "regression":
            return pd.DataFrame({"prediction": predicted.double().numpy() * self.target.std + self.target.mean})
        labels = self.target.labels(predicted.argmax(1).numpy())
        chances = {f"probability_{name}": predicted[:, k].numpy() for k, name in enumerate(self.target.classes)}
        return pd.DataFrame({"prediction": labels, **chances})


def save_bundle(folder: Path, bundle: Bundle, history: Sequence[Mapping[str, float]]) -> None:
    """Write weights, history and description; the description last, since its sums make the bundle whole."""
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
    sums = {name: files.sha256(folder / name) for name in (WEIGHTS, HISTORY)} | {DESCRIPTION: _sum(body)}
    files.write_json(folder / DESCRIPTION, {"sha256": sums, **body})


def copy_bundle(source: Path, folder: Path) -> None:
    """The files of a bundle, the description last."""
    for name in (WEIGHTS, HISTORY, DESCRIPTION):
        files.copy(source / name, folder / name)


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
    # Sums tell of accidents. Whoever means harm writes sums that fit: nothing below trusts what it reads.
    try:
        described = _Description.model_validate_json(json.dumps(body))
        return _build(folder, described, files.parse_tensors(folder / WEIGHTS, weights))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{folder} cannot be loaded: {'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]
        ) from None
    except (_MisfitError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from None


class _Description(BaseModel):
    """What `model.json` says besides its sums."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    format: int
    model: Model
    target: Target
    temperature: Annotated[float, Field(gt=0)]
    scaling: Scaling
    params: dict[Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$")], Any]
    learned: Annotated[Schema, Field(alias="schema")]


class _MisfitError(Exception):
    """Weights that are not those of the description."""


def _description(path: Path) -> dict[str, Any]:
    content = files.json_bytes(path)
    try:
        body = json.loads(content)
        same = files.dump_json(body).encode() == content
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not what was saved: {error}") from None
    if not isinstance(body, dict) or not isinstance(body.get("sha256"), dict) or not same:
        raise UserError(f"{path} is not what was saved")
    return body


def _build(folder: Path, described: _Description, tensors: dict[str, Tensor]) -> Bundle:
    model, learned, target = described.model, described.learned, described.target
    if model.ensemble == "auto":
        raise _MisfitError("its model does not say how many members it has")
    members = tuple(
        _member(_under(_prefix(k, model.n_members), tensors), model, learned, target) for k in range(model.n_members)
    )
    numbers = _under("preprocessor.", tensors)
    preprocessor = preprocessing.checked(folder / WEIGHTS, described.scaling, numbers, learned)
    return Bundle(members, model, learned, target, preprocessor, described.params, described.temperature)


def _member(state: dict[str, Tensor], model: Model, learned: Schema, target: Target) -> nn.Sequential:
    edges = _edges(state, learned.d_num) if model.numeric == "ple" and learned.d_num else ()
    drawn = [tensor for name, tensor in state.items() if not name.endswith(_EDGES)]
    # Before the network is built: whoever describes one of terabytes has to send them.
    n_bins = sum(len(each) - 1 for each in edges)
    if n_parameters(model, learned, target.n_outputs, n_bins) != sum(tensor.numel() for tensor in drawn):
        raise _MisfitError("its weights are not those of the network that it describes")
    if len(drawn) <= len(model.hidden) or any(tensor.dtype != torch.float32 for tensor in drawn):
        raise _MisfitError("its weights are not those of the network that it describes")
    network = build_network(model, learned, target.n_outputs, torch.Generator(), edges)
    network.load_state_dict(state)
    return network.eval()


_EDGES = (".edges", ".counts")  # the buffers of `PiecewiseLinear`, whatever its place in the network


def _edges(state: dict[str, Tensor], d_num: int) -> tuple[Tensor, ...]:
    """The bins of each number, as `PiecewiseLinear` keeps them."""
    edges, counts = (
        next((tensor for name, tensor in state.items() if name.endswith(end)), torch.empty(0)) for end in _EDGES
    )
    if edges.dtype != torch.float32 or counts.dtype != torch.int64 or edges.dim() != 1 or counts.shape != (d_num,):
        raise _MisfitError("it does not say which bins its numbers have")
    if not edges.isfinite().all() or (counts < 2).any() or (counts > len(edges)).any() or counts.sum() != len(edges):
        raise _MisfitError("it does not say which bins its numbers have")
    parts: tuple[Tensor, ...] = edges.split(counts.tolist())
    return parts


def _prefix(k: int, n_members: int) -> str:
    """What the names of a member's tensors begin with."""
    return "network." if n_members == 1 else f"network.{k}."


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sum(body: dict[str, Any]) -> str:
    return hashlib.sha256(files.dump_json(body).encode()).hexdigest()
