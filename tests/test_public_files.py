"""Files such as people download or export, made up: each is read as a person who knows them would read them.

`tests/data/<name>.yaml` says what is right for `<name>.csv` or `<name>.tsv`: the parameters that its user sets; kind,
values and what else matters of each column; classes or values of the target; counts of rows; and what must be said.
Values are those of the first rows, or {row: value} with rows counted from 1.
"""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline.core.settings import Csv, Data
from pipeline.sources.readers import read_file
from pipeline.stages.prepare.preparation import Prepared, describe, prepare
from pipeline.tables import moments, reading, validation
from pipeline.tables.raw import RAW_TABLE, load_raw, save_raw
from pipeline.tables.schema import Column, Schema
from pipeline.tables.values import canonical_value

FOLDER = Path(__file__).parent / "data"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@dataclass(frozen=True)
class Case:
    """What is right for a file, and what the program makes of it."""

    right: dict[str, Any]
    table: pd.DataFrame
    prepared: Prepared
    said: str

    @property
    def schema(self) -> Schema:
        return self.prepared.schema

    @property
    def features(self) -> pd.DataFrame:
        return self.prepared.domains["source"].features


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    (path,) = (FOLDER / f"{request.param}{suffix}" for suffix in (".csv", ".tsv") if _exists(request.param, suffix))
    right = YAML(typ="safe", pure=True).load((FOLDER / f"{request.param}.yaml").read_text("utf-8"))
    data = Data.model_validate_json(json.dumps({"source": str(path), **right["data"]}))
    with contextlib.redirect_stdout(io.StringIO()) as told:
        table = _through_raw(path, data.csv, tmp_path_factory.mktemp("project"))
    prepared = prepare(table, None, data, seed=0)
    return Case(right, table, prepared, told.getvalue() + describe(prepared.schema))


def test_a_public_file_is_read_as_a_person_reads_it(case: Case) -> None:
    columns = {column.name: column for column in case.schema.columns}
    assert list(columns) == list(case.right["columns"])
    wrong = [line for name, right in case.right["columns"].items() for line in _differences(case, columns[name], right)]
    wrong += [f"target: {line}" for line in _target_differences(case)]
    counts = {"target_missing": 0, "totals": 0, **case.right["rows"]}
    found = {name: case.schema.rows.get(name, 0) for name in counts}
    wrong += [f"rows: {found} for {counts}"] if found != counts else []
    wrong += [f"not said: {text}" for text in case.right.get("said", []) if text not in case.said]
    assert not wrong, "\n".join([*wrong, case.said])


@pytest.mark.parametrize("n", [None, 5], ids=["all", "five"])
def test_its_rows_in_another_order_are_read_to_the_same_values(case: Case, n: int | None, tmp_path: Path) -> None:
    """Also a few of them alone, as in a second file: with other cells, and in another spelling of CSV."""
    order = np.random.default_rng(0).permutation(len(case.features))[:n]
    case.table.iloc[order].to_csv(tmp_path / "again.csv", index=False)
    again = _through_raw(tmp_path / "again.csv", Csv(separator=","), tmp_path)
    features = validation.check(again, case.schema, "again")
    pd.testing.assert_frame_equal(features, case.features.iloc[order].reset_index(drop=True))
    np.testing.assert_array_equal(
        case.schema.target.encode(again[case.schema.target.name]),
        case.schema.target.encode(case.table[case.schema.target.name].iloc[order]),
    )


def _exists(name: str, suffix: str) -> bool:
    return (FOLDER / f"{name}{suffix}").is_file()


def _through_raw(path: Path, options: Csv, folder: Path) -> pd.DataFrame:
    """Read a file, save it in data/raw of a folder and load it from there."""
    with contextlib.chdir(folder):
        RAW_TABLE.parent.mkdir(parents=True, exist_ok=True)
        save_raw(read_file(str(path), options), RAW_TABLE)
        return load_raw(with_total=True)


def _differences(case: Case, column: Column, right: dict[str, Any]) -> list[str]:
    """Say in what a column differs from what is right."""
    boolean = column.kind == "categorical" and column.reading.type == "boolean"
    found = {
        "kind": "boolean" if boolean else column.kind,
        "flags": list(column.reading.flags) if column.kind == "numeric" else [],
        "words": column.words,
    }
    wanted = {"kind": right["kind"], "flags": right.get("flags", []), "words": right.get("words", {})}
    if column.kind == "drop":
        wanted["words"] = found["words"]  # of a column that is not read
    wrong = [f"{name} {found[name]!r} for {wanted[name]!r}" for name in found if found[name] != wanted[name]]
    if right.get("reason", "") not in column.reason:
        wrong.append(f"reason {column.reason!r} without {right['reason']!r}")
    if column.name in case.features:
        values = case.features[column.name]
        categories = {str(value) for value in values.dropna()}
        if "categories" in right and categories != set(map(canonical_value, right["categories"])):
            wrong.append(f"categories {sorted(categories)} for {right['categories']}")
        date = column.kind != "datetime" or moments.holds(column.reading.format)[0]
        wrong += _value_differences(values, right.get("values", {}), date)
    return [f"{column.name}: {line}" for line in wrong]


def _target_differences(case: Case) -> list[str]:
    target, right = case.schema.target, case.right["target"]
    wrong, cells = [], case.table[target.name]
    if list(target.classes) != right.get("classes", []) or not _same_types(target.classes, right.get("classes", [])):
        wrong.append(f"classes {target.classes!r} for {right['classes']!r}")
    if target.task == "regression":
        return wrong + _value_differences(reading.read(cells, target.reading).values, right["values"])
    codes = pd.Series(target.encode(cells))
    labels = pd.Series([target.classes[code] if code >= 0 else None for code in codes], dtype=object)
    return wrong + _value_differences(labels, right["values"])


def _same_types(found: Any, wanted: Any) -> bool:
    return list(map(type, found)) == list(map(type, wanted))


def _value_differences(values: pd.Series, right: list[Any] | dict[int, Any], date: bool = True) -> list[str]:
    by_row = right if isinstance(right, dict) else dict(enumerate(right, 1))
    found = {row: _shown(values.iloc[row - 1], date) for row in by_row}
    wanted = {row: _shown(_moment(value) if _is_moment(values) else value, date) for row, value in by_row.items()}
    return [f"row {row}: {found[row]} for {wanted[row]}" for row in by_row if found[row] != wanted[row]]


def _is_moment(values: pd.Series) -> bool:
    return pd.api.types.is_datetime64_any_dtype(values.dtype)


def _moment(value: str | None) -> pd.Timestamp | None:
    moment = pd.Timestamp(value) if value is not None else None
    return moment.tz_localize("UTC") if moment is not None and moment.tz is None else moment


def _shown(value: Any, date: bool) -> str:
    if pd.isna(value):
        return "missing"
    if isinstance(value, pd.Timestamp):
        return value.isoformat() if date else value.time().isoformat()
    return f"{value:.12g}" if isinstance(value, float) else canonical_value(value)
