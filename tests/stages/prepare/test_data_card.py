"""The data card says what was read, shows text of the table as text, and depends on nothing else."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.settings import Data
from pipeline.stages.prepare import data_card
from pipeline.stages.prepare.data_card import MAX_COLUMNS, N_BARS, render
from pipeline.stages.prepare.preparation import prepare
from pipeline.tables.schema import Column

N = 40
HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"{{ 7 * 7 }}"


def table() -> pd.DataFrame:
    """Each kind of column, written so that every number on the card can be counted by hand."""
    return pd.DataFrame({
        "row": [str(k + 1) for k in range(N)],
        "size": ["?", "?", None, *(f"{1000 + 100 * k:,}" for k in range(N - 3))],
        "limit": [*(f"{k}.5" for k in range(N - 2)), "90+", "90+"],
        "colour": ["red"] * 30 + ["green"] * 9 + ["blue"],
        "day": [f"{day:02d}/03/2024" for day in (*range(1, 32), *[31] * 9)],
        "y": ["no"] * 20 + ["yes"] * 20,
    })  # fmt: skip


def card(frame: pd.DataFrame, second: pd.DataFrame | None = None, **data) -> str:
    options = Data(**{"source": "s", "target": "y", "task": "binary", **data})
    return render(prepare(frame, second, options, 0), options)


class Reader(HTMLParser):
    """The elements of a page with their attributes, and the words of its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data.split()


def text(page: str) -> str:
    return " ".join(Reader(page).words)


def columns(page: str) -> dict[str, str]:
    """The part of the page about each column, as text by name."""
    articles = re.findall(r'<article class="column">.*?</article>', page, re.DOTALL)
    return {text(re.search(r"<h3>(.*?)<span", article)[1]): text(article) for article in articles}


def bars(values: list[float], unit: float = 1.0) -> list[tuple[str, int]]:
    found = data_card._histogram(np.sort(np.array(values, float)), unit, data_card._number)
    return [(bar.label, bar.n) for bar in found.bars]


# ---------------------------------------------------------------------------------------------------- what it says


def test_the_card_tells_rows_target_and_each_column_as_counted_by_hand():
    frame = table()
    frame.loc[N] = ["41", "?", "1.5", "red", "01/03/2024", None]
    page = card(frame, source="data/source/small.csv")
    said = text(page)
    assert "Data card of small.csv y Target for binary classification. 5 other columns:" in said
    assert "2 numeric, 1 categorical, 1 date or time, 1 set aside." in said
    assert "read 41 without a target 1 left out repeat another row 0 used 40" in said
    assert "training 32 80.0% validation 4 10.0% test 4 10.0%" in said
    assert "no 20 50.0% yes 20 50.0%" in said

    found = columns(page)
    assert list(found) == ["row", "size", "limit", "colour", "day"]
    assert found["row"] == "row set aside reason an id by its name that counts the rows missing none"
    size = found["size"]
    assert "numeric reason numbers; thousands separator ','" in size
    assert "missing 3, 7.5% missing words ? 3" in size  # of the used rows, and of all rows
    assert " → " in size
    assert "minimum 1000 lower quartile 1900 median 2800 upper quartile 3700 maximum 4600" in size
    assert "flags > at least the number, 2" in found["limit"]
    assert "missing none" in found["limit"]
    assert found["colour"].endswith("red 30 75.0% green 9 22.5% blue 1 2.5%")
    assert "01/03/2024 → 2024-03-01" in found["day"]
    assert "first 2024-03-01 last 2024-03-31" in found["day"]
    assert "2024-03-31: 10 rows, 25.0%" in found["day"]  # bars of two days, and March has 31


def test_notes_are_listed():
    frame = table()
    frame["class"] = ["None", "a", "b", "c"] * 10
    assert "class: 'None' in 10 rows read as text" in text(card(frame))


def test_a_regression_target_is_shown_in_its_own_units():
    frame = table().assign(y=[f"{k * 1e6:.0f}" for k in range(N)])
    said = text(card(frame, task="regression"))
    assert "Target for regression." in said
    assert "minimum 0 lower quartile 9,750,000 median 19,500,000 upper quartile 29,250,000 maximum 39,000,000" in said


def test_top_categories_are_the_most_frequent_and_count_the_others():
    frame = table()
    frame["word"] = [f"w{k:02d}" for k in range(12) for _ in range(3)] + ["w11"] * 4
    said = columns(card(frame))["word"]
    assert said.index("w11 7") < said.index("w00 3") < said.index("w08 3")
    assert "w09" not in said.partition("w00 3")[2]
    assert said.endswith("2 other values in 6 rows.")


def test_a_transfer_domain_of_the_table_and_one_of_a_second_table_are_told():
    frame = table()
    said = text(card(frame, transfer={"column": "colour", "values": ("green", "blue")}))
    assert "source domain training 24" in said
    assert "transfer domain training 8" in said
    assert "Counts are of the 40 rows used, in" in said
    second = table().assign(y=["no"] * 30 + ["yes"] * 10).drop(columns="row").assign(row=[str(k + 7) for k in range(N)])
    said = text(card(frame, second, transfer={"source": "second.csv"}))
    assert "second table: read 40" in said
    assert "second table: used 40" in said
    assert "40 rows used of the first table" in said
    assert "no 30 75.0% yes 10 25.0%" in said


def test_blank_cells_and_words_of_a_column_that_is_set_aside_are_missing():
    frame = table().assign(empty=[None, " ", "n/a", "x"] * 10)
    assert "missing 20, 50.0%" in columns(card(frame, drop=("empty",)))["empty"]
    assert "missing 20, 50.0%" in columns(card(frame.astype({"empty": "category"}), drop=("empty",)))["empty"]
    frame["nested"] = [[1], None] * 20
    assert "holds list values missing 20, 50.0%" in columns(card(frame))["nested"]


# ------------------------------------------------------------------------------------------------------- histograms


def test_whole_numbers_have_bars_of_whole_widths():
    assert bars([1, 1, 2, 4]) == [("1", 2), ("2", 1), ("3", 0), ("4", 1)]
    assert bars(list(range(40))) == [(f"{k} to {k + 1}", 2) for k in range(0, 40, 2)]
    assert bars([7, 7]) == [("7", 2)]


def test_other_numbers_have_twenty_bars_that_count_every_value():
    values = np.random.default_rng(0).normal(size=999)
    found = bars(list(values))
    assert [n for _, n in found] == np.histogram(values, N_BARS)[0].tolist()
    assert bars([0.5, 0.5]) == [("0.5", 2)]


def test_a_few_extreme_values_do_not_flatten_a_histogram():
    found = data_card._histogram(np.sort([*np.linspace(0, 1, 2000), 1e9]), 1.0, data_card._number)
    assert max(bar.n for bar in found.bars) < 200
    assert sum(bar.n for bar in found.bars) == 2001
    assert found.outside == 20  # half a percent at either end


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_any_finite_numbers_have_figures_and_a_histogram(values):
    picture = data_card._numbers(np.array(values))
    assert picture.histogram is not None
    assert 1 <= len(picture.histogram.bars) <= N_BARS
    assert sum(bar.n for bar in picture.histogram.bars) == len(values)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50), st.sampled_from([0, 0.25, 0.5, 0.75, 1]))
def test_quantiles_are_those_of_numpy(values, share):
    assert data_card._quantile(np.sort(values), share) == pytest.approx(np.quantile(values, share), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (-0.0, "0"), (2024, "2024"), (12345, "12,345"), (-1234567, "-1,234,567"), (3.14159265, "3.1416"), (0.05, "0.05"),
     (12345.678, "12,346"), (2.5e-9, "2.5e-09"), (1e300, "1e+300"), (99999.96, "100,000")],
)  # fmt: skip
def test_numbers_are_written_with_five_digits(value, said):
    assert data_card._number(value) == said


def test_a_share_is_not_rounded_to_none_or_all():
    assert [data_card._share(n, 10_000) for n in (0, 1, 10, 5000, 9999, 10_000)] == [
        "0%",
        "<0.1%",
        "0.1%",
        "50.0%",
        ">99.9%",
        "100%",
    ]


# ---------------------------------------------------------------------------------------------------------- safety


def hostile() -> Iterator[pd.DataFrame]:
    """Tables in which a name, a cell, a class or a word is markup."""
    frame = table()
    yield frame.rename(columns={"colour": HOSTILE, "size": f'" onload="{HOSTILE}'})
    yield frame.replace("red", HOSTILE)
    yield frame.replace("yes", HOSTILE)
    yield frame.assign(colour=HOSTILE)  # constant: a part of the reason
    yield frame.assign(colour=["\x1b[31m\u202e&amp;</style>", *["x"] * (N - 1)])


@pytest.mark.parametrize("frame", [*hostile()])
def test_text_of_the_table_is_shown_as_text(frame):
    page = card(frame, source=f"data/{HOSTILE}.csv")
    page.encode("utf-8")
    seen = Reader(page)
    assert seen.open == []
    tags = {tag for tag, _ in seen.elements}
    assert tags.isdisjoint({"script", "img", "b", "a", "link", "iframe", "object", "form"})
    assert not [name for _, attributes in seen.elements for name in attributes if name.startswith("on")]
    assert "49" not in re.findall(r"alert\(2\).{0,20}", page)
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page)


def test_missing_words_and_flags_are_shown_as_text():
    frame = table().assign(size=["<b>"] * 4 + [str(k) for k in range(N - 4)])
    page = card(frame, missing={"size": ("<b>",)})
    assert "missing words <b> 4" in columns(page)["size"]
    assert "<b>" not in page


def test_long_text_is_cut():
    frame = table().rename(columns={"colour": "n" * 5000}).replace("red", "v" * 5000)
    page = card(frame)
    assert "n" * 59 + "…" in page
    assert "v" * 39 in page
    assert max(map(len, Reader(page).words)) <= 1000  # the style sheet
    assert not re.search("n{61}|v{61}", page)


def test_nothing_is_loaded_and_nothing_runs():
    page = card(table(), source="https://${USER}:${PASSWORD}@example.org/data/table.csv?token=${TOKEN}")
    assert "Data card of table.csv" in page
    assert not re.search(r"://|url\(|@import|src=|href=|<script|javascript:", page, re.IGNORECASE)
    assert not re.search("PASSWORD|TOKEN|example.org", page)
    assert "default-src 'none'" in page


def test_the_same_table_gives_the_same_bytes():
    assert card(table()) == card(table())
    assert card(table()) == card(table().astype({"colour": "category"}))


# ------------------------------------------------------------------------------------------------------ many columns


def test_of_many_columns_the_most_interesting_are_shown_in_their_order():
    frame = table()
    plain = pd.DataFrame({f"p{k}": [str(i % (11 + k % 7)) + ".5" for i in range(N)] for k in range(MAX_COLUMNS)})
    page = card(pd.concat([plain, frame], axis=1))
    found = list(columns(page))
    assert len(found) == MAX_COLUMNS
    assert found[-4:] == ["row", "size", "limit", "day"]
    assert "200 of 205 columns are shown" in text(page)
    assert "5 are left out" in text(page)


def test_columns_set_aside_are_more_interesting_than_those_with_words_and_these_than_converted_ones():
    def column(name: str, **rest) -> Column:
        return Column(**{"name": name, "kind": "categorical", "reason": "", **rest})

    plain = [column(f"p{k}") for k in range(MAX_COLUMNS)]
    converted = [column(f"c{k}", examples=(("1,5", "1.5"),)) for k in range(100)]
    words = [column(f"w{k}", words={"NA": 1}) for k in range(90)]
    aside = [column(f"d{k}", kind="drop") for k in range(50)]
    chosen = data_card._most_interesting([*plain, *converted, *words, *aside])
    assert [each.name for each in chosen] == [each.name for each in [*converted[:60], *words, *aside]]
