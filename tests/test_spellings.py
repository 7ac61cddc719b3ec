"""A table reads the same however it is written: as CSV in many spellings, and as the typed Parquet of its values."""

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.settings import Csv, Data
from pipeline.sources import text
from pipeline.stages.prepare.preparation import Prepared, prepare
from pipeline.tables import raw, validation

N = 80
MARKS = [(".", ""), (".", ","), (",", "."), (",", ""), (",", " "), (".", "'"), (",", "\u202f"), (".", " ")]
DATES = [
    "%Y-%m-%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%Y/%m/%d",
    "%b %d, %Y",
    "%d-%b-%Y",
    "%Y%m%d",
    "%d %B %Y",
    "%d.%m.%y",
]
CLOCKS = ["", " %H:%M:%S", " %I:%M:%S %p"]
TRUTH = [("true", "false"), ("TRUE", "FALSE"), ("yes", "no"), ("Y", "N"), ("t", "f"), ("On", "off")]
WORDS = ["", "NA", "?", "-", "null", "n/a", "Unknown"]


def number(value: float, marks: tuple[str, str], affix: tuple[str, str], negative: str) -> str:
    """Write a number with its decimal mark, thousands separator, unit, and sign."""
    decimal, thousands = marks
    body = f"{abs(value):,.2f}".replace(",", "\0").replace(".", decimal).replace("\0", thousands)
    body = f"{affix[0]}{body}{affix[1]}"
    if value >= 0:
        return body
    return {"minus": f"-{body}", "brackets": f"({body})", "trailing": f"{body}-", "typographic": f"\u2212{body}"}[
        negative
    ]


@st.composite
def spellings(draw: Callable[..., Any]) -> tuple[pd.DataFrame, str]:
    """Draw a typed table, and the same table as the text of a CSV file."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    marks = draw(st.sampled_from(MARKS))
    word = draw(st.sampled_from(WORDS))
    true, false = draw(st.sampled_from(TRUTH))
    day = draw(st.sampled_from(DATES))
    clock = draw(st.sampled_from(CLOCKS)) if day != "%Y%m%d" else ""
    affix = draw(st.sampled_from([("", ""), ("$", ""), ("", "%"), ("", " km"), ("", " €"), ("", "kg")]))
    negative = draw(st.sampled_from(["minus", "brackets", "trailing", "typographic"]))
    moments = pd.Series(pd.date_range("2019-01-03 05:06:07", periods=N, freq="11D7h3min9s"))
    moments = moments if clock else moments.dt.normalize()
    amount = np.round(rng.normal(0, 3000, N), 2)
    typed = pd.DataFrame({
        "anchor": np.round(rng.normal(0, 1, N), 2),
        "amount": amount,
        "count": rng.integers(0, 90_000, N),
        "small": rng.integers(0, 4, N),
        "flag": rng.random(N) < 0.5,
        "when": moments.sample(frac=1, random_state=1).reset_index(drop=True),
        "colour": rng.choice(["red", "green", "None", "n/a x"], N),
        "y": rng.choice(["no way", "NA", "yes; sir"], N),
    })  # fmt: skip
    gap = rng.random(N) < draw(st.sampled_from([0.0, 0.1]))
    cells = pd.DataFrame({
        "anchor": [f"{value:.2f}".replace(".", marks[0]) for value in typed["anchor"]],
        "amount": [number(value, marks, affix, negative) for value in amount],
        "count": [f"{value:,}".replace(",", marks[1]) for value in typed["count"]],
        "small": typed["small"].astype(str),
        "flag": np.where(typed["flag"], true, false),
        "when": typed["when"].dt.strftime(day + clock),
        "colour": typed["colour"],
        "y": typed["y"],
    }, dtype="str")  # fmt: skip
    for name in ("amount", "flag", "when"):
        typed[name] = typed[name].astype("boolean" if name == "flag" else typed[name].dtype).mask(gap)
        cells.loc[gap, name] = word
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    separator = draw(st.sampled_from([";", "\t", ","]))
    buffer = io.StringIO()
    cells.to_csv(buffer, sep=separator, index=False, quoting=quoting)
    return typed, buffer.getvalue()


def read(content: str, folder: Any) -> pd.DataFrame:
    raw.save_raw(text.read("t.csv", content.encode(), Csv()), folder / "text.parquet")
    return raw.read_parquet("text", (folder / "text.parquet").read_bytes(), text_as_categories=True)


def tensors(found: Prepared, table: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    features = validation.check(table, found.schema, "t")
    return *found.preprocessor.transform(features, found.schema), found.schema.target.encode(table["y"])


def meaning(found: Prepared) -> list[tuple[Any, ...]]:
    return [(c.name, c.kind, c.reading.type, c.categories, c.missing, c.parts) for c in found.schema.columns]


@given(drawn=spellings(), seed=st.integers(0, 100))
@settings(max_examples=60, database=None, deadline=None)
def test_every_spelling_gives_the_schema_and_tensors_of_the_typed_table(tmp_path_factory, drawn, seed):
    typed, content = drawn
    folder = tmp_path_factory.mktemp("spelling")
    typed.to_parquet(folder / "typed.parquet")
    data = Data(source="s", target="y", task="multiclass")
    of_types = prepare(raw.read_parquet("typed", (folder / "typed.parquet").read_bytes()), None, data, 0)
    table = read(content, folder)
    of_text = prepare(table, None, data, 0)
    assert [each[:2] + each[3:] for each in meaning(of_text)] == [each[:2] + each[3:] for each in meaning(of_types)]
    assert of_text.schema.target.classes == of_types.schema.target.classes
    for one, other in zip(tensors(of_text, table), tensors(of_types, typed), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))

    # A later file holds some of the rows in another order, as text or as types.
    rows = np.random.default_rng(seed).permutation(N)[: 1 + seed % N]
    whole = tensors(of_text, table)
    for later in (
        table.iloc[rows],
        typed.iloc[rows],
        table.astype("str").astype(object).where(table.notna(), None).iloc[rows],
    ):
        for part, all_rows in zip(tensors(of_text, later), whole, strict=True):
            np.testing.assert_array_equal(np.asarray(part), np.asarray(all_rows)[rows])


@pytest.mark.parametrize("marks", [(".", ","), (",", ".")])
def test_thousands_that_nothing_proves_are_refused_and_decided_by_the_parameter(marks):
    cells = "\n".join(f'"{n}{marks[1]}{n:03d}",{n % 2}' for n in range(1, 90))
    table = text.read("t.csv", f"a,y\n{cells}\n".encode(), Csv())
    with pytest.raises(Exception, match=r"'1[.,]001' can be") as caught:
        prepare(table, None, Data(source="s", target="y", task="binary"), 0)
    assert "data.csv.decimal" in str(caught.value)
    decided = prepare(table, None, Data(source="s", target="y", task="binary", csv=Csv(decimal=marks[0])), 0)
    np.testing.assert_array_equal(decided.domains["source"].features["a"], [1001 * n for n in range(1, 90)])
