"""Any table becomes finite tensors with the widths of the schema, or one clear line."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.settings import Data
from pipeline.stages.prepare.preparation import Prepared, describe, prepare
from pipeline.tables import prepared as storage
from pipeline.tables.prepared import SPLITS, load_prepared
from pipeline.tables.tensors import TabularData
from tests.support.refusals import refusal

N = 200


def table(n: int = N, seed: int = 0) -> pd.DataFrame:
    """Numbers, a category, dates, some of them missing, and a target of two classes."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "size": rng.normal(5, 2, n),
        "weight": np.where(rng.random(n) < 0.2, np.nan, rng.lognormal(size=n)),
        "colour": rng.choice(["red", "green", "blue"], n),
        "day": pd.date_range("2020-01-01", periods=n).strftime("%Y-%m-%d"),
        "place": rng.choice(["here", "there"], n),
        "y": rng.choice(["no", "yes"], n),
    })  # fmt: skip


def options(**data) -> Data:
    return Data(**{"source": "s", "target": "y", "task": "binary", **data})


def prepared(frame: pd.DataFrame, second: pd.DataFrame | None = None, seed: int = 0, **data) -> Prepared:
    return prepare(frame, second, options(**data), seed)


def tensors(found: Prepared, domain: str = "source") -> dict[str, TabularData]:
    kept = found.domains[domain]
    return {
        name: TabularData(*found.preprocessor.transform(kept.features.iloc[rows], found.schema), torch.from_numpy(kept.y[rows]))
        for name, rows in kept.splits.items()
    }  # fmt: skip


def sound(found: Prepared) -> None:
    """Check that tensors are finite, fit the schema, and that training has every class."""
    schema = found.schema
    for domain, kept in found.domains.items():
        target = schema.target if domain == "source" else schema.transfer_target
        assert tuple(kept.splits) == SPLITS
        for name, part in tensors(found, domain).items():
            assert len(part) == schema.rows[f"{domain}_{name}"] > 0
            assert part.x_num.shape == (len(part), schema.d_num)
            assert part.x_num.dtype == torch.float32
            assert torch.isfinite(part.x_num).all()
            assert part.x_cat.shape == (len(part), len(schema.cardinalities))
            assert (part.x_cat.long() < torch.tensor(schema.cardinalities)).all()
            assert (part.x_cat.long() >= 0).all()
            assert torch.isfinite(part.y).all()
            if target.task != "regression":
                assert 0 <= part.y.min() <= part.y.max() < len(target.classes)
                if domain == "source" and name == "train":
                    assert len(part.y.unique()) == len(target.classes)


# ---------------------------------------------------------------------------------------------------- hostile tables


def some(rng: np.random.Generator, n: int, *values) -> list:
    return [values[i] for i in rng.integers(0, len(values), n)]


def text_of_days(rng: np.random.Generator, n: int, shown: str) -> list[str]:
    return list((pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 10**7, n), unit="s")).strftime(shown))


COLUMNS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "wide": lambda rng, n: rng.normal(size=n) * 10.0 ** rng.integers(-300, 300, n),
    "float32": lambda rng, n: rng.normal(size=n).astype(np.float32),
    "whole": lambda rng, n: rng.integers(-(2**62), 2**62, n),
    "few": lambda rng, n: rng.integers(0, 4, n),
    "uint8": lambda rng, n: rng.integers(0, 255, n).astype(np.uint8),
    "Int64": lambda rng, n: pd.array(some(rng, n, *range(20), None), dtype="Int64"),
    "Float64": lambda rng, n: pd.array(some(rng, n, 0.5, 1.5, -1e9, None), dtype="Float64"),
    "bool": lambda rng, n: rng.random(n) < 0.5,
    "boolean": lambda rng, n: pd.array(some(rng, n, True, False, None), dtype="boolean"),
    "text": lambda rng, n: some(rng, n, "a", "b", " ", "é/😀", "nan"),
    "text missing": lambda rng, n: some(rng, n, "a", "b", None),
    "string": lambda rng, n: pd.array(some(rng, n, "a", "b", None), dtype="string"),
    "ids": lambda rng, n: [f"id {i}" for i in rng.permutation(n)],
    "words": lambda rng, n: [*map(str, rng.permutation(n - 2)), "unknown", "?"],
    "mixed": lambda rng, n: pd.Series(some(rng, n, 1, "1", 2.5, None, "x"), dtype=object),
    "category": lambda rng, n: pd.Categorical(some(rng, n, "a", "b", None)),
    "category int": lambda rng, n: pd.Categorical(some(rng, n, 3, 4, None)),
    "category empty": lambda rng, n: pd.Categorical([None] * n, categories=[]),
    "date": lambda rng, n: pd.Series([datetime.date(1500 + i, 1, 1) for i in rng.integers(0, 900, n)], dtype=object),
    "moment": lambda rng, n: pd.Series(pd.to_datetime(text_of_days(rng, n, "%Y-%m-%d %H:%M"))).where(rng.random(n) < 0.9),
    "zoned": lambda rng, n: pd.to_datetime(text_of_days(rng, n, "%Y-%m-%d %H:%M")).tz_localize("UTC").tz_convert("Asia/Tokyo"),
    "iso": lambda rng, n: text_of_days(rng, n, "%Y-%m-%dT%H:%M:%S"),
    "german": lambda rng, n: text_of_days(rng, n, "%d.%m.%Y"),
    "clock": lambda rng, n: text_of_days(rng, n, "%H:%M"),
    "span": lambda rng, n: pd.to_timedelta(rng.integers(0, 10**6, n), unit="s"),
    "decimal": lambda rng, n: pd.Series([decimal.Decimal(int(i)) / 8 for i in rng.integers(0, 99, n)], dtype=object),
    "list": lambda rng, n: pd.Series([[int(i)] for i in rng.integers(0, 9, n)], dtype=object),
    "bytes": lambda rng, n: some(rng, n, b"a", b"b"),
    "missing": lambda rng, n: [None] * n,
    "late": lambda rng, n: [None] * (n - 3) + ["a", "b", "c"],
    "constant": lambda rng, n: [7] * n,
    "infinite": lambda rng, n: np.where(rng.random(n) < 0.01, np.inf, rng.normal(size=n)),
}  # fmt: skip
names = st.text(" /.:\n#é😀ab\"'", min_size=1, max_size=4) | st.sampled_from(
    ["index", "level_0", "0", "y ", "kind", "None"]
)


@st.composite
def hostile(draw):
    """Draw a table of any columns, and settings that may not fit it."""
    n, rng = draw(st.integers(100, 300)), np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = draw(st.dictionaries(names, st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=6))
    target = draw(st.sampled_from(["text", "few", "few", "bool", "normal", "text missing", *sorted(COLUMNS)]))
    frame = pd.DataFrame({name: pd.Series(COLUMNS[kind](rng, n)) for name, kind in kinds.items()})
    frame["y"] = pd.Series(COLUMNS[target](rng, n))
    fitting = "regression" if target in ("normal", "span", "decimal", "Float64") else "multiclass"
    column = draw(st.sampled_from(sorted(kinds)))
    held = kinds[column] in ("few", "text", "bool", "boolean", "Int64", "category", "category int", "uint8", "list")
    by = ["random"] * 4 + ([] if "\n" in column else [f"time:{column}", f"group:{column}"])
    data = options(
        task=draw(st.sampled_from([fitting, fitting, fitting, "binary", "multiclass", "regression"])),
        scaling=draw(st.sampled_from(["standard", "robust", "quantile"])),
        split={"by": draw(st.sampled_from(by))},
        transfer=draw(st.sampled_from([None, {"column": column, "values": (3, "a", True, 7)}] if held else [None])),
        max_categories=draw(st.sampled_from([1, 3, 250])),
        min_count=draw(st.sampled_from([1, 5])),
        duplicates=draw(st.sampled_from(["keep", "drop"])),
        kinds=draw(st.dictionaries(st.just(column), st.sampled_from(["numeric", "categorical", "drop"]), max_size=1)),
    )
    return frame, data, draw(st.integers(0, 9))


@given(hostile())
@settings(max_examples=250, database=None, deadline=None)
def test_any_table_is_prepared_or_refused_in_one_line(case):
    frame, data, seed = case
    refused = ""
    try:
        found = prepare(frame, None, data, seed)
    except UserError as error:
        refused = str(error)
    if refused:
        assert len(refused.splitlines()) == 1, repr(refused)
    else:
        sound(found)
        assert describe(found.schema)


@pytest.mark.parametrize("kind", sorted(set(COLUMNS) - {"infinite"}))
@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_every_kind_of_column_is_prepared(kind, scaling):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"odd": pd.Series(COLUMNS[kind](rng, N)), "even": rng.normal(size=N), "y": rng.integers(0, 2, N)}
    )
    sound(prepared(frame, scaling=scaling))


@pytest.mark.parametrize("scaling", ["standard", "robust", "quantile"])
def test_table_of_categories_alone_is_prepared(scaling):
    found = prepared(table()[["colour", "place", "y"]], scaling=scaling)
    sound(found)
    assert found.schema.d_num == 0


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["no", "yes"], "binary"),
        ([True, False], "binary"),
        ([0, 1, 2], "multiclass"),
        ([0.5, 1.5], "binary"),
        ([10.0, None, 20.0], "binary"),
        (pd.to_datetime(["2020-01-01", "2021-01-01"]), "binary"),
        (list(range(50)), "regression"),
        ([1.5, None, 2.5, 3.5], "regression"),
        ([decimal.Decimal(1), decimal.Decimal(2), decimal.Decimal(4)], "regression"),
    ],
)
def test_every_kind_of_target_is_prepared(values, task):
    y = pd.Series([values[i % len(values)] for i in range(N)])
    found = prepared(table().assign(y=y), task=task)
    sound(found)
    assert found.schema.rows["target_missing"] == y.isna().sum()


# ---------------------------------------------------------------------------------------- what is learned from where


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize("scaling", ["standard", "robust", "quantile"])
def test_validation_and_test_rows_change_no_fitted_number(task, scaling):
    frame = table()
    if task == "regression":
        frame["y"] = np.random.default_rng(1).normal(size=N)
    first = prepared(frame, task=task, scaling=scaling)
    other = frame.copy()
    held_out = np.concatenate([first.domains["source"].splits[name] for name in ("val", "test")])
    other.loc[held_out, "size"] = 1e6
    other.loc[held_out, "weight"] = np.nan
    other.loc[held_out, "colour"] = "violet"
    other.loc[held_out, "day"] = "1999-12-31"
    if task == "regression":
        other.loc[held_out, "y"] = 1e6
    second = prepared(other, task=task, scaling=scaling)
    assert (second.schema.columns, second.schema.target) == (first.schema.columns, first.schema.target)
    assert second.preprocessor.numbers.keys() == first.preprocessor.numbers.keys()
    for name, numbers in first.preprocessor.numbers.items():
        assert torch.equal(second.preprocessor.numbers[name], numbers)
    train, again = tensors(first)["train"], tensors(second)["train"]
    assert torch.equal(train.x_num, again.x_num)
    assert torch.equal(train.y, again.y)
    changed = prepared(frame.assign(size=frame["size"] + 1), task=task, scaling=scaling)
    assert any(not torch.equal(changed.preprocessor.numbers[n], v) for n, v in first.preprocessor.numbers.items())


def test_regression_target_is_standardised_by_training_rows():
    frame = table().assign(y=np.arange(N) ** 2.0)
    found = prepared(frame, task="regression")
    train = frame["y"].iloc[found.domains["source"].splits["train"]]
    np.testing.assert_allclose(found.schema.target.mean, train.mean())
    np.testing.assert_allclose(found.schema.target.std, train.std(ddof=0))
    y = tensors(found)["train"].y.double()
    np.testing.assert_allclose([y.mean(), y.std(correction=0)], [0, 1], atol=1e-6)


def test_preparation_is_a_function_of_the_seed():
    first, again, other = (prepared(table(), seed=seed) for seed in (1, 1, 2))
    rows = [found.domains["source"].splits["test"].tolist() for found in (first, again, other)]
    assert rows[0] == rows[1] != rows[2]
    assert first.schema == again.schema


def test_rows_without_a_target_are_dropped_and_counted():
    frame = table()
    frame.loc[[3, 50, 199], "y"] = None
    found = prepared(frame)
    used = np.concatenate(list(found.domains["source"].splits.values()))
    assert found.schema.rows["target_missing"] == 3
    assert sorted(used) == sorted(set(range(N)) - {3, 50, 199})
    counts = found.schema.rows
    assert counts["read"] == N == 3 + sum(counts[f"source_{name}"] for name in SPLITS)
    sound(found)


@pytest.mark.parametrize(("duplicates", "n"), [("keep", N + 5), ("drop", N)])
def test_repeated_rows_are_counted_and_dropped_if_asked(duplicates, n):
    frame = pd.concat([table(), table().head(4), table().head(1)], ignore_index=True)
    counts = prepared(frame, duplicates=duplicates).schema.rows
    assert counts["duplicates"] == 5
    assert sum(counts[f"source_{name}"] for name in SPLITS) == n


def test_a_row_dropped_for_two_reasons_is_counted_once():
    frame = pd.concat([table(), table().head(1)] * 2, ignore_index=True)
    frame.loc[[0, N], "y"] = None
    counts = prepared(frame, duplicates="drop").schema.rows
    dropped = counts["read"] - sum(counts[f"source_{name}"] for name in SPLITS)
    assert dropped == (frame["y"].isna() | frame.duplicated()).sum()


def test_saved_preparation_reads_back(tmp_path):
    found = prepared(table(), transfer={"column": "place", "values": ("there",)})
    found.save(tmp_path / "a")
    found.save(tmp_path / "b")
    schema, preprocessor = load_prepared(tmp_path / "a")
    assert schema == found.schema
    assert storage.domains(tmp_path / "a") == ["source", "transfer"]
    for domain, kept in found.domains.items():
        for name, part in tensors(found, domain).items():
            loaded = storage.load_split(domain, name, tmp_path / "a")
            for field in ("x_num", "x_cat", "y"):
                assert torch.equal(getattr(loaded, field), getattr(part, field))
            rows = storage.load_rows(domain, name, tmp_path / "a")
            assert rows.tolist() == kept.splits[name].tolist()
            again = preprocessor.transform(kept.features.iloc[rows], schema)
            assert torch.equal(again[0], part.x_num)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2 * 3 + 2
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_loading_before_preparing_names_the_command_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro"):
        load_prepared(tmp_path)


# --------------------------------------------------------------------------------------------------------- transfer


@pytest.mark.parametrize("values", [("there",), ("there", "nowhere")])
def test_rows_with_the_values_are_the_transfer_domain(values):
    frame = table()
    found = prepared(frame, transfer={"column": "place", "values": values})
    sound(found)
    for domain, place in (("source", "here"), ("transfer", "there")):
        rows = np.concatenate(list(found.domains[domain].splits.values()))
        assert sorted(rows) == np.flatnonzero(frame["place"] == place).tolist()
    assert found.schema.transfer_target == found.schema.target


@pytest.mark.parametrize("stored", ["int64", "float64", "str", "category", "Int64"])
@pytest.mark.parametrize("value", [2, 2.0, "2"])
def test_transfer_values_match_however_the_column_is_stored(stored, value):
    zone = np.arange(N) % 3
    found = prepared(
        table().assign(zone=pd.Series(zone).astype(stored)), transfer={"column": "zone", "values": (value,)}
    )
    rows = np.concatenate(list(found.domains["transfer"].splits.values()))
    assert sorted(rows) == np.flatnonzero(zone == 2).tolist()


def test_source_numbers_do_not_depend_on_the_transfer_domain():
    frame = table()
    transfer = {"column": "place", "values": ("there",)}
    first = prepared(frame, transfer=transfer)
    there = frame["place"] == "there"
    frame = frame.assign(size=frame["size"].mask(there, 99.0), colour=frame["colour"].mask(there, "violet"))
    second = prepared(frame, transfer=transfer)
    assert first.schema.columns == second.schema.columns
    assert all(torch.equal(second.preprocessor.numbers[n], v) for n, v in first.preprocessor.numbers.items())


def test_second_table_is_the_transfer_domain():
    second = table(120, seed=5).assign(extra=1)[["y", "extra", "place", "day", "colour", "weight", "size"]]
    second.loc[7, "y"] = None
    found = prepared(table(), second, transfer={"source": "other.csv"})
    sound(found)
    rows = np.concatenate(list(found.domains["transfer"].splits.values()))
    assert sorted(rows) == sorted(set(range(120)) - {7})
    assert (found.schema.rows["transfer_read"], found.schema.rows["transfer_target_missing"]) == (120, 1)
    assert found.schema.columns == prepared(table()).schema.columns


def test_transfer_domain_may_have_other_classes():
    second = table(120, seed=5)
    second["y"] = np.where(second["y"] == "yes", "perhaps", "never")
    found = prepared(table(), second, transfer={"source": "other.csv"})
    sound(found)
    assert found.schema.target.classes == ("no", "yes")
    assert found.schema.transfer_target.classes == ("never", "perhaps")
    kept = found.domains["transfer"]
    labels = found.schema.transfer_target.labels(kept.y)
    assert labels.tolist() == second["y"].tolist()


def test_transfer_domain_with_some_of_the_classes_keeps_their_codes():
    frame = table().assign(y=lambda t: np.where(t["size"] > 6, "maybe", t["y"]))
    second = frame[frame["y"] != "maybe"].reset_index(drop=True)
    found = prepared(frame, second, task="multiclass", transfer={"source": "other.csv"})
    sound(found)
    assert found.schema.transfer_target == found.schema.target
    assert found.schema.target.labels(found.domains["transfer"].y).tolist() == second["y"].tolist()


def test_a_missing_transfer_column_gives_a_note_and_no_domain():
    found = prepared(table(), transfer={"column": "planet", "values": ("Mars",)})
    assert list(found.domains) == ["source"]
    assert found.schema.transfer_target is None
    assert any("'planet'" in note for note in found.schema.notes)
    assert "'planet'" in describe(found.schema)


TOO_MANY = pd.DataFrame({"y": ["a", "b", "c"] * 40})


@pytest.mark.parametrize(
    ("second", "transfer", "said"),
    [
        (None, {"column": "place", "values": ("nowhere",)}, ["data.transfer", "'place'", "'nowhere'"]),
        (None, {"column": "place", "values": ("here", "there")}, ["data.transfer", "every row"]),
        (None, {"column": "day", "values": ("2020-01-01",)}, ["transfer"]),
        (table(60).drop(columns="y"), {"source": "o.csv"}, ["data.transfer.source", "'y'"]),
        (table(60).drop(columns="size"), {"source": "o.csv"}, ["data.transfer.source", "'size'"]),
        (table(60).assign(size="big"), {"source": "o.csv"}, ["data.transfer.source, row 1", "'size'", "'big'"]),
        (table(60).assign(y=None), {"source": "o.csv"}, ["transfer"]),
        (table(60).assign(y="other"), {"source": "o.csv"}, ["transfer", "one class, 'other'"]),
        (table(120).assign(y=TOO_MANY["y"]), {"source": "o.csv"}, ["transfer", "3 classes"]),
        (table(2), {"source": "o.csv"}, ["transfer"]),
    ],
)
def test_invalid_transfer_domain_is_refused(second, transfer, said):
    message = refusal(prepared, table(), second, transfer=transfer)
    for words in said:
        assert words in message, message


@pytest.mark.parametrize("y", ["text", np.inf])
def test_transfer_target_of_regression_must_be_numbers(y):
    frame = table().assign(y=np.arange(N) * 0.5)
    second = table(60).assign(y=[y, *range(59)])
    assert "transfer" in refusal(prepared, frame, second, task="regression", transfer={"source": "o.csv"})


@pytest.mark.parametrize("by", ["time:day", "group:colour"])
def test_second_table_without_the_column_of_the_split_is_refused(by):
    column = by.partition(":")[2]
    second = table(60).drop(columns=column)
    kept = {"drop": (column,)}
    message = refusal(
        prepared, table().assign(colour=np.arange(N) % 20), second, split={"by": by}, transfer={"source": "o"}, **kept
    )
    assert "data.transfer.source" in message
    assert repr(column) in message


# ---------------------------------------------------------------------------------------------------------- refusals


def test_a_class_missing_from_training_in_a_time_split_is_refused():
    frame = table().sort_values("day").assign(y=["no", "yes"] * 90 + ["later"] * 20)
    message = refusal(prepared, frame, task="multiclass", split={"by": "time:day"})
    assert "'later'" in message
    assert "20 rows" in message
    assert "training" in message


@pytest.mark.parametrize(
    ("frame", "data", "said"),
    [
        (table().drop(columns="y"), {}, "data.target"),
        (table()[["y"]], {}, "no column is left"),
        (table()[["y"]].assign(a=1, b=[f"id-{i}" for i in range(N)]), {}, "no column is left"),
        (table(), {"drop": ("sise",)}, "'size'"),
        (table().assign(y=None), {}, "target"),
        (table().assign(y="a"), {}, "one class"),
        (table().head(1), {}, "one class"),
        (table().assign(size=[np.inf, *range(N - 1)]), {}, "row 1: 'size' must be finite"),
        (table().assign(size=["big", *range(N - 1)]), {"kinds": {"size": "numeric"}}, "row 1: 'size' must be a number"),
        (table().assign(y=pd.Series([[1], [2]] * (N // 2))), {}, "list"),
    ],
)
def test_unusable_table_is_refused(frame, data, said):
    assert said in refusal(prepared, frame, **data)
