"""Tables whose cells were misread once: what each holds, and what is said of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.core.errors import UserError
from pipeline.core.settings import Csv, Data, Task
from pipeline.sources import readers, text
from pipeline.stages.prepare.preparation import Prepared, describe, prepare
from pipeline.tables import reading, validation
from tests.support.refusals import refusal
from tests.support.samples import bundle as trained
from tests.support.samples import make

N = 60


def csv(header: str, *cells: Sequence[object], separator: str = ";") -> bytes:
    """Write N rows that repeat the cells of each column."""
    rows = [separator.join(str(column[row % len(column)]) for column in cells) for row in range(N)]
    return "\n".join([header, *rows, ""]).encode()


def prepared(content: bytes, task: Task = "binary", options: Csv | None = None, **data) -> Prepared:
    table = text.read("t.csv", content, options or Csv())
    return prepare(table, None, Data(source="s", target="y", task=task, csv=options or Csv(), **data), 0)


def values(found: Prepared, name: str = "x") -> list[Any]:
    return [None if pd.isna(value) else value for value in found.domains["source"].features[name]]


def column(found: Prepared, name: str = "x"):
    return next(each for each in found.schema.columns if each.name == name)


Y = [0, 1]
SPREAD = [f"{n}.25" for n in range(30)]

# --------------------------------------------------------------------------------------------------------- missing


@pytest.mark.parametrize("word", ["NA", "n/a", "?", "-", "null", "Unknown", "..", "#N/A", "  ", ""])
def test_a_word_for_missing_is_missing_among_numbers_dates_and_truth_values(word):
    days = [f"2020-01-{day:02}" for day in range(1, 29)]
    found = prepared(csv("x;d;b;y", [word, *SPREAD], [word, *days], [word, "yes", "no"], [*Y, 1]))
    assert [column(found, name).kind for name in "xdb"] == ["numeric", "datetime", "categorical"]
    assert values(found)[0] is values(found, "d")[0] is values(found, "b")[0] is None
    assert values(found)[1] == 0.25
    if word.strip():
        assert f"missing: {word!r}" in describe(found.schema)


@pytest.mark.parametrize("word", ["None", "NA", "null", "unknown"])
def test_a_class_may_be_called_none(word):
    found = prepared(csv("x;y", SPREAD, [word, "a", "b"]), task="multiclass")
    assert found.schema.target.classes == tuple(sorted([word, "a", "b"]))
    assert found.schema.rows["target_missing"] == 0
    assert f"{word!r} in 20 rows" in describe(found.schema)
    named = prepared(csv("x;y", SPREAD, [word, "a", "b"]), missing={"y": (word,)})
    assert (named.schema.target.classes, named.schema.rows["target_missing"]) == (("a", "b"), 20)


def test_a_number_that_means_missing_is_named_by_the_user_and_holds_for_types_too():
    found = prepared(csv("x;y", ["-999", *SPREAD], [0, 1, 1]), missing={"x": ("-999",)})
    assert values(found)[0] is None
    assert validation.check(pd.DataFrame({"x": [-999, 1]}), found.schema, "t")["x"].isna().tolist() == [True, False]
    typed = prepare(pd.DataFrame({"x": [-999, *range(59)], "y": [0, 1] * 30}), None,
                    Data(source="s", target="y", task="binary", missing={"x": ("-999",)}), 0)  # fmt: skip
    assert values(typed)[:2] == [None, 0]


def test_only_an_empty_cell_is_missing_in_a_column_of_words_unless_the_user_lists_words():
    content = csv("x;y", ["None", "small", "", "NA"], [0, 1, 1])
    assert set(values(prepared(content))) == {"None", "small", "NA", None}
    assert set(values(prepared(content, missing=("none", "?")))) == {"small", "NA", None}
    assert set(values(prepared(content, missing={"x": ("NA",)}))) == {"None", "small", None}


@pytest.mark.parametrize("number", ["-999", "99999"])
def test_nines_far_from_all_other_numbers_are_pointed_out(number):
    setting = f"set data.missing: {{x: ['{number}']}}"
    assert setting in describe(prepared(csv("x;y", [number, *SPREAD], [0, 1, 1])).schema)
    near = [*SPREAD, "99", "110.5", "120"]
    assert "data.missing" not in describe(prepared(csv("x;y", near, Y)).schema)


def test_numbers_in_different_units_are_text_and_pointed_out():
    cells = [f"{n}.5 {unit}" for n in range(15) for unit in ("kg", "lb")]
    found = prepared(csv("x;y", cells, Y))
    assert "x: numbers in different units, 'kg' and 'lb'" in describe(found.schema)
    assert column(found).reading.type == "text"


def test_dates_in_two_orders_are_text_and_pointed_out():
    days = pd.date_range("2018-01-13", periods=15)
    found = prepared(csv("x;y", [*days.strftime("%d/%m/%Y"), *days.strftime("%m/%d/%Y")], Y))
    assert "dates with the day first and others with the month first" in describe(found.schema)


HARDLY_REPEATING = {
    "plain": repr,
    "padded": lambda x: f" {x:.9f}  ",
    "missing": lambda x: "n/a" if x > 1 else f"{x:.9f}",
    "bound": lambda x: f">{x:.9f}" if x > 1 else f"{x:.9f}",
    "flagged": lambda x: "pending" if x > 1 else f"{x:.9f}",
    "grouped": lambda x: f"{1e8 * x:,.3f} km",
    "dates": lambda x: f"{pd.Timestamp(int(1.5e18 + 1e17 * x)):%d.%m.%Y %H:%M:%S}",
}


@pytest.mark.parametrize("written", HARDLY_REPEATING.values(), ids=HARDLY_REPEATING)
def test_a_column_that_hardly_repeats_is_read_as_each_of_its_cells_is(written):
    cells = [written(float(x)) for x in np.random.default_rng(0).normal(size=2 * reading.SAMPLE)]
    table = text.read(
        "t.csv", "\n".join(["x;y", *(f"{cell};{k % 2}" for k, cell in enumerate(cells)), ""]).encode(), Csv()
    )
    assert reading.hardly_repeats(table["x"])
    found = prepare(table, None, Data(source="s", target="y", task="binary"), 0)
    whole = found.domains["source"].features
    assert column(found).kind != "drop"
    for part in (table.iloc[:100], table.iloc[::-200], table.iloc[7:8]):
        single = validation.check(part.reset_index(drop=True), found.schema, "t")
        pd.testing.assert_frame_equal(single, whole.iloc[part.index].reset_index(drop=True))


def test_a_row_of_units_is_pointed_out():
    content = b"x;z;y\nmm;kg;0\n" + csv("x;z;y", SPREAD, SPREAD, Y).split(b"\n", 1)[1]
    assert "row 1 holds 'mm' (x), 'kg' (z) among numbers" in describe(prepared(content).schema)


def test_an_unknown_label_of_a_regression_is_missing():
    found = prepared(csv("x;y", SPREAD, ["?", *map(str, range(100, 140))]), task="regression")
    assert found.schema.rows["target_missing"] == 2
    assert "missing: '?' 2" in describe(found.schema)


# --------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["83,772", "1,234.50", "12"], [83772, 1234.5, 12]),
        (["1.234,50", "4.323", "825"], [1234.5, 4323, 825]),
        (["189,75", "2,5"], [189.75, 2.5]),
        (["51\u202f943,5", "1 234"], [51943.5, 1234]),
        (["51'943", "1’234.5"], [51943, 1234.5]),
        (["12,34,567", "1,234"], [1234567, 1234]),
        (["37.5%", "4 %", "0"], [37.5, 4, 0]),
        (["$1,234.50", "-$3.00", "$0.5"], [1234.5, -3, 0.5]),
        (["5,5 €", "6 €"], [5.5, 6]),
        (["CHF 5.5", "CHF 6"], [5.5, 6]),
        (["12.5 km", "3km"], [12.5, 3]),
        (["(12.5)", "3"], [-12.5, 3]),
        (["12.5-", "3"], [-12.5, 3]),
        (["−12.5", "+3"], [-12.5, 3]),
        (["1e3", "2.5E-1", ".5", "5."], [1000, 0.25, 0.5, 5]),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(cells, expected):
    found = prepared(csv("x;y", cells, Y), kinds={"x": "numeric"})
    assert values(found)[: len(expected)] == pytest.approx(expected)
    # A later file is read by the same rule, whatever its other cells are, and takes numbers as they are.
    later = pd.DataFrame({"x": [cells[-1]]})
    assert validation.check(later, found.schema, "t")["x"].tolist() == pytest.approx([expected[-1]])
    assert validation.check(pd.DataFrame({"x": [expected[0]]}), found.schema, "t")["x"].tolist() == [expected[0]]


def test_two_readings_of_a_number_are_decided_by_the_other_columns():
    other = csv("x;z;y", ["4.323", "825"], ["0,5", "1,25"], Y)
    assert values(prepared(other, kinds={"x": "numeric"}))[:2] == [4323, 825]
    assert "other columns" in describe(prepared(other, kinds={"x": "numeric"}).schema)
    other = csv("x;z;y", ["4.323", "825"], ["0.5", "1.25"], Y)
    assert values(prepared(other, kinds={"x": "numeric"}))[:2] == [4.323, 825]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"decimal": "."}, 4.323), ({"decimal": ","}, 4323), ({"thousands": "."}, 4323), ({"thousands": "none"}, 4.323)],
)
def test_two_readings_that_nothing_decides_are_refused_or_set(options, expected):
    content = csv("x;y", ["4.323", "825"], Y)
    said = refusal(prepared, content)
    assert "'4.323' can be 4.323 or 4323" in said
    assert "data.csv.decimal" in said
    assert values(prepared(content, options=Csv(**options), kinds={"x": "numeric"}))[0] == expected


@pytest.mark.parametrize(
    ("cell", "value", "flag"),
    [("90+", 90, ">"), (">90", 90, ">"), (">= 90", 90, ">"), ("<0.15", 0.15, "<"), ("≤3", 3, "<")],
)
def test_a_number_that_is_a_bound_has_a_flag(cell, value, flag):
    found = prepared(csv("x;y", [cell, *SPREAD], Y))
    assert column(found).reading.flags == (flag,)
    assert values(found)[0] == value
    later = validation.check(pd.DataFrame({"x": [cell, str(value), ""]}), found.schema, "t")
    assert later[f"x {flag}"].tolist() == [True, False, False]
    assert later["x"].isna().tolist() == [False, False, True]


def test_a_word_that_no_list_names_is_kept_apart_from_missing_cells():
    found = prepared(csv("x;y", ["pending", "", *SPREAD], [0, 1, 1]))
    assert column(found).reading.flags == ("pending",)
    x_num, _ = found.preprocessor.transform(found.domains["source"].features, found.schema)
    assert not np.array_equal(x_num[0], x_num[1])


# ----------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("x", ["007", "7", "0042", "42"]),
        ("x", ["02139", "10001"]),
        ("x", ["1.1", "1.10", "1.2", "1.20"]),
        ("x", ["1.9", "1.10", "1.11"]),
        ("x", ["123456789012345678", "123456789012345679"]),
        ("x", ["01", "19", "2A", "2B"]),
        ("zip", [str(10000 + 37 * n) for n in range(20)]),
        ("phone_number", ["2125551234", "2125551235"]),
        ("x", ["+4930123456", "+4930123457"]),
    ],
)
def test_codes_keep_their_text(name, cells):
    found = prepared(csv(f"{name};y", cells, [0, 1, 1]))
    assert column(found, name).kind == "categorical"
    assert set(column(found, name).categories) == set(cells)
    alone = validation.check(pd.DataFrame({name: [cells[0]]}), found.schema, "t")
    assert alone[name].tolist() == [cells[0]]


def test_a_category_keeps_its_text_where_the_user_says_so():
    found = prepared(csv("x;y", ["007", "7", " 7"], [0, 1, 1]), kinds={"x": "categorical"})
    assert set(column(found).categories) == {"007", "7"}
    found = prepared(csv("x;y", ["007", "7", " 7"], [0, 1, 1]), kinds={"x": "text-as-category"})
    assert set(column(found).categories) == {"007", "7", " 7"}


def test_the_answer_for_a_row_does_not_depend_on_the_other_rows_of_its_file():
    content = csv("x;z;y", ["01", "07", "19", "2A"], SPREAD, ["n", "s"])
    of = make(text.read("t.csv", content, Csv()), Data(source="s", target="y", task="binary"))
    model = trained(of)
    whole = model.predict(text.read("t.csv", content, Csv()))
    part = csv("x;z;y", ["01", "07", "19"], SPREAD, ["n", "s"])
    alone = model.predict(text.read("t.csv", part, Csv()).iloc[:3])
    pd.testing.assert_frame_equal(alone, whole.iloc[:3])


# ---------------------------------------------------------------------------------------------------- truth values


@pytest.mark.parametrize(
    "pair", [("true", "false"), ("TRUE", "FALSE"), ("Yes", "no"), ("Y", "N"), ("t", "f"), ("on", "off")]
)
def test_truth_values_have_one_form(pair):
    found = prepared(csv("x;y", [*pair, pair[0]], [0, 1]))
    assert set(column(found).categories) == {"true", "false"}
    for true in (True, 1, 1.0, "1", "true", "YES", "t", np.True_):
        assert validation.check(pd.DataFrame({"x": [true]}), found.schema, "t")["x"].tolist() == ["true"]
    said = refusal(validation.check, pd.DataFrame({"x": [True, 2]}), found.schema, "t")
    assert "t, row 2: 'x' must be true or false, got '2'" in said


def test_a_third_word_makes_a_category_and_leaves_the_two_as_they_are():
    found = prepared(csv("x;y", ["TRUE", "FALSE", "maybe"], [0, 1]))
    assert set(column(found).categories) == {"TRUE", "FALSE", "maybe"}
    later = validation.check(pd.DataFrame({"x": [True, False]}), found.schema, "t")
    assert later["x"].tolist() == ["TRUE", "FALSE"]


def test_a_second_table_has_the_target_of_the_first():
    first = text.read("a.csv", csv("x;y", SPREAD, ["TRUE", "FALSE", "unknown"]), Csv())
    second = text.read("b.csv", csv("x;y", SPREAD, ["TRUE", "FALSE"]), Csv())
    typed = second.assign(y=second["y"] == "TRUE")
    data = Data(source="s", target="y", task="multiclass")
    for table in (second, typed):
        found = prepare(first, table, data, 0)
        assert found.schema.transfer_target == found.schema.target


# ----------------------------------------------------------------------------------------------------------- dates

MOMENTS = pd.date_range("2018-01-02 12:26", periods=N, freq="29D7h13min")


@pytest.mark.parametrize(
    "written",
    [
        "%m/%d/%Y %I:%M:%S %p", "%d-%m-%Y", "%m/%d/%y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%Y%m%d",
        "%Y-%m", "%m/%Y", "%b %Y", "%b-%y", "%d.%m.%y", "%d.%m.%Y %H:%M", "%Y/%m/%d %H:%M", "%a %b %d %H:%M:%S %Y",
        "%a, %d %b %Y %H:%M:%S +0000", "%Y-%m-%dT%H:%M:%SZ", "%d%b%Y", "%A, %B %d, %Y", "%d/%m/%Y %H:%M UTC", "%I:%M %p",
        "%Y.%m.%d", "%H.%M.%S", "%m-%d-%Y %H:%M", "%m/%d/%Y %I %p", "%I%p", "%d/%b/%Y:%H:%M:%S +0000", "%Y:%m:%d %H:%M:%S",
    ],
)  # fmt: skip
def test_dates_and_times_are_found(written):
    found = prepared(csv("x;y", list(MOMENTS.strftime(written)), Y))
    assert column(found).kind == "datetime", column(found).reason
    expected = pd.to_datetime(MOMENTS.strftime(written), format=written, utc=True)
    assert [value.time() for value in values(found)] == list(expected.time)
    if "%d" in written:
        assert [value.date() for value in values(found)] == list(expected.date)
    assert column(found).reading.format in describe(found.schema)


@pytest.mark.parametrize(
    ("name", "cells", "expected"),
    [
        ("x", ["2018Q1", "2018Q2", "2019Q4"], "2018-01-01"),
        ("x", ["Q1 2018", "Q3 2018"], "2018-01-01"),
        ("x", ["1Q18", "3Q99"], "2018-01-01"),
        ("month", [f"{y}{m:02}" for y in (2018, 2019) for m in range(1, 13)], "2018-01-01"),
        ("x", ["2018-01-02 12:26:00", "0000-00-00 00:00:00", "2018-01-03 00:00:00"], "2018-01-02 12:26:00"),
        ("x", ["Sept 2, 2018", "Jan 14, 2018"], "2018-09-02"),
        ("x", ["September 2nd, 2018", "January 31st, 2018"], "2018-09-02"),
        ("created_us", [str(1514895960000000 + 86_400_000_000 * n) for n in range(N)], "2018-01-02 12:26:00"),
        ("timestamp", [str(1514895960000000000 + 86_400_000_000_000 * n) for n in range(N)], "2018-01-02 12:26:00"),
        ("epoch_ms", [str(1514895960000 + 86_400_000 * n) for n in range(N)], "2018-01-02 12:26:00"),
        ("created_at", [str(1514895960 + 86_400 * n) for n in range(N)], "2018-01-02 12:26:00"),
        ("x", ["02/01/2018 12:26 CET", "14/02/2018 12:26 CET"], "2018-01-02 11:26:00"),
        ("x", ["2018-01-02", "0000-00-00", "2018-01-03"], "2018-01-02"),
    ],
)
def test_other_spellings_of_dates_are_found(name, cells, expected):
    found = prepared(csv(f"{name};y", cells, [0, 1, 1]))
    assert column(found, name).kind == "datetime"
    assert values(found, name)[0] == pd.Timestamp(expected, tz="UTC")


@pytest.mark.parametrize("written", ["%d/%m/%Y", "%d-%m-%Y", "%d/%m/%y", "%d/%m/%Y %H:%M"])
def test_days_and_months_that_nothing_distinguishes_are_refused_or_set(written):
    days = pd.DatetimeIndex([f"2021-{month:02}-{day:02}" for day in range(1, 13, 3) for month in range(1, 13)])
    content = csv("x;y", list(days.strftime(written)), Y)
    said = refusal(prepared, content)
    assert written in said
    assert written.replace("%d", "?").replace("%m", "%d").replace("?", "%m") in said
    assert "data.formats: {x: " in said
    found = prepared(content, formats={"x": written})
    assert values(found)[:48] == [day.tz_localize("UTC") for day in days]
    assert values(prepared(content, formats={"x": written}, split={"by": "time:x"}))[:1] == [days[0].tz_localize("UTC")]


# -------------------------------------------------------------------------------------------------------- row numbers


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("", range(1, N + 1), "a nameless column that counts the rows"),
        ("index", range(N), "counts the rows"),
        ("PassengerId", range(892, 892 + N), "counts the rows"),
        ("id", [3 * n + n % 2 for n in range(N)], "sorted values that never repeat"),
        ("customer_id", [n * 7919 % 100_003 for n in range(N)], "a value of its own in every row"),
    ],
)
def test_row_numbers_and_ids_are_set_aside(name, cells, reason):
    found = prepared(csv(f"{name};z;y", list(cells), SPREAD, ["a"] * (N // 2) + ["b"] * (N // 2)))
    aside = found.schema.of_kind("drop")
    assert [each.name for each in aside] == [name or "Unnamed: 0"]
    assert reason in aside[0].reason
    assert ("sorted by class" in describe(found.schema)) == ("counts" in reason)
    assert [each.name for each in found.schema.features] == ["z"]
    assert len(validation.check(pd.DataFrame({"z": ["1.5"]}), found.schema, "t")) == 1


# ---------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0", "1", ""], (0, 1)),
        (["0.0", "1.0", ""], (0, 1)),
        (["yes", "no", "yes "], ("no", "yes")),
        (["TRUE", "FALSE", ""], ("FALSE", "TRUE")),
        (["01", "02", ""], ("01", "02")),
    ],
)
def test_labels_come_back_as_the_table_has_them(labels, classes):
    found = prepared(csv("x;y", SPREAD, labels))
    assert found.schema.target.classes == classes
    assert found.schema.target.labels(np.array([0, 1])).tolist() == list(classes)
    assert ("spaces around 20 labels" in describe(found.schema)) == ("yes " in labels)


def test_labels_that_differ_in_capital_letters_are_named():
    assert "'Yes' and 'yes' differ only in capital letters" in describe(
        prepared(csv("x;y", SPREAD, ["Yes", "yes", "no"]), task="multiclass").schema
    )


# ------------------------------------------------------------------------------------------------------------ print


def test_what_is_printed_has_at_most_forty_lines_and_names_what_was_converted():
    names = ";".join(f"c{n}" for n in range(100))
    content = csv(f"{names};price;y", *([[f"{n}.5" for n in range(30)]] * 100), ["$1,5", "$2,75", "?"], Y)
    lines = describe(prepared(content).schema).splitlines()
    assert len(lines) <= 40
    price = next(line for line in lines if line.startswith("price: "))
    assert "missing: '?' 20" in price
    assert "$1,5 = 1.5" in price
    assert "more in data/prepared/schema.json" in lines[-1]


# ------------------------------------------------------------------------------------------------------ more of files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (csv("x;y", SPREAD, Y) + b"x;y\n1.5;0\n", "is the header again"),
        (csv("x;y", [*SPREAD, *SPREAD[:29], "12a"], Y), "'12a' keeps the column from being numbers"),
        (
            csv("z;x;y", SPREAD, [*pd.date_range("2018-01-01", periods=N - 1).strftime("%Y-%m-%d"), "2018-02-30"], Y),
            "x: '2018-02-30' keeps the column from being dates",
        ),
        (csv("x;y", ["'a'", "'b'"], Y), "set data.csv.quote"),
        (csv("x < ;x;y", SPREAD, ["<5", *SPREAD], Y), "has the name of an indicator"),
    ],
)
def test_what_is_odd_in_a_file_is_said(content, said):
    try:
        found = describe(prepared(content).schema)
    except UserError as error:
        found = str(error)
    assert said in found


@pytest.mark.parametrize(
    ("written", "name"), [("%y/%m/%d", "%y/%m/%d"), ("%Y%m%d%H%M%S", "%Y%m%d%H%M%S"), ("%m.%Y", "%m.%Y")]
)
def test_years_first_compact_times_and_months_are_found(written, name):
    found = prepared(csv("x;y", list(pd.date_range("2018-01-02 10:11:12", periods=N, freq="9D").strftime(written)), Y))
    assert column(found).reading.format == name


def test_spaces_before_quotes_are_not_part_of_the_cells():
    found = prepared(b'"x", "c", "y"\n' + b"".join(b'%d.5, "a, b", "%d"\n' % (n, n % 2) for n in range(N)), drop=())
    assert found.schema.target.classes == (0, 1)


def test_a_total_is_left_out_before_the_columns_are_read():
    found = prepared(csv("x;y", SPREAD, Y) + b"Total;3\n")
    assert column(found).kind == "numeric"
    assert (found.schema.rows["read"], found.schema.rows["totals"]) == (N + 1, 1)


def test_columns_aligned_with_spaces_are_separated():
    rows = [f'{n}.5    {"a" if n % 3 else "b"}  "two  words"   {n % 2}' for n in range(N)]
    found = prepared("\n".join(["x    c  name   y", *rows, ""]).encode())
    assert column(found).kind == "numeric"
    assert column(found, "c").categories == ("a", "b")
    assert found.schema.target.classes == (0, 1)


def test_row_names_without_a_header_are_a_nameless_column():
    rows = [f'"{n + 1}",{n}.5,{n % 2}' for n in range(N)]
    found = prepared("\n".join(['"x","y"', *rows, ""]).encode())
    assert [each.name for each in found.schema.of_kind("drop")] == ["Unnamed: 0"]
    assert values(found)[:2] == [0.5, 1.5]


def test_a_title_that_a_spreadsheet_filled_up_with_empty_cells_is_not_the_header():
    said = refusal(prepared, b"Report 2024;;\n;;\n" + csv("x;z;y", SPREAD, SPREAD, Y))
    assert "the header is probably line 3: set data.csv.skip to 2" in said
    kept = prepared(csv("x;;y", SPREAD, ["a", "b"], Y))
    assert [each.name for each in kept.schema.columns] == ["x", "Unnamed: 1"]


def test_a_letter_with_an_accent_is_the_same_name_in_both_forms():
    found = prepared(csv("re\u0301gion;y", ["a", "b"], Y), kinds={"r\u00e9gion": "categorical"})
    assert column(found, "r\u00e9gion").categories == ("a", "b")


# ------------------------------------------------------------------------------- the same in CSV, Parquet and later files


@pytest.mark.parametrize(
    ("cells", "expected"), [(["1.0", "0.0", ""], ["true", "false", None]), (["1.0", "0", ""], ["true", "false", None])]
)
def test_whole_numbers_of_a_column_with_gaps_may_have_a_point(cells, expected):
    assert values(prepared(csv("x;z;y", cells, SPREAD, Y)))[:3] == expected
    days = prepared(csv("x;z;y", ["20180102.0", "20180203.0", ""], SPREAD, Y))
    assert values(days)[:3] == [pd.Timestamp("2018-01-02", tz="UTC"), pd.Timestamp("2018-02-03", tz="UTC"), None]


def test_a_cell_that_does_not_fit_the_rule_of_its_column_is_named_in_the_training_table_too():
    content = csv("x;z;y", ["a", "b"], SPREAD, Y)
    assert "data.source, row 1: 'x' must be true or false, got 'a'" in refusal(
        prepared, content, kinds={"x": "boolean"}
    )


@pytest.mark.parametrize("task", ["regression", "binary"])
def test_a_number_that_means_missing_is_missing_in_typed_targets_and_categories(task):
    target = [-999, *range(59)] if task == "regression" else [9, *[0, 1] * 29, 1]
    frame = pd.DataFrame({"x": list(range(N)), "zip": [99999, 10115] * (N // 2), "y": target})
    missing: dict[str, tuple[str, ...]] = {"y": (str(target[0]),), "zip": ("99999",)}
    found = prepare(frame, None, Data(source="s", target="y", task=task, missing=missing), 0)
    assert found.schema.rows["target_missing"] == 1
    assert column(found, "zip").categories == ("10115",)


@pytest.mark.parametrize(("cell", "value"), [("12.-", 12), ("5,-", 5), ("Fr. 12.--", 12), ("5,- €", 5), ("7,–", 7)])
def test_a_price_without_cents_is_no_negative_number(cell, value):
    found = prepared(csv("x;y", [cell, cell.replace(cell.strip("Fr.,-– €"), "30")], Y), kinds={"x": "numeric"})
    assert values(found)[:2] == [value, 30]


def test_true_and_one_are_two_values_whatever_stands_beside_them():
    found = prepared(csv("x;z;y", ["true", "false", "maybe"], SPREAD, Y))
    both = validation.check(pd.DataFrame({"x": [True, 1], "z": 1.5}, dtype=object), found.schema, "t")["x"].tolist()
    single = validation.check(pd.DataFrame({"x": [1], "z": 1.5}, dtype=object), found.schema, "t")["x"].tolist()
    assert both == ["true", *single]


def test_long_codes_in_some_rows_keep_their_digits():
    cells = ["0", "0", "123456789012345678", "123456789012345679"]
    assert column(prepared(csv("x;z;y", cells, SPREAD, Y))).categories == ("0", *cells[2:])
    typed = pd.DataFrame({"x": list(map(int, cells)) * 15, "z": range(N), "y": Y * (N // 2)})
    assert column(prepare(typed, None, Data(source="s", target="y", task="binary"), 0)).categories == ("0", *cells[2:])


def test_a_column_that_is_not_used_proves_no_decimal_mark():
    content = csv("part;x;y", ["1.1", "2.3"], ["4.323", "825"], Y)
    assert values(prepared(content, kinds={"x": "numeric"}))[:2] == [4.323, 825]
    assert "no cell proves which" in refusal(prepared, content, drop=("part",))


@pytest.mark.parametrize(
    ("name", "cells", "kind"),
    [
        ("population_us", [str(316_000_000 + 1000 * n) for n in range(N)], "numeric"),
        ("number", [str(1_003_000_126 + 9_000_000 * n) for n in range(N)], "numeric"),
        ("Postleitzahl", ["10115", "80331"], "categorical"),
        ("Mobil", ["170 200 300", "171 200 301"], "categorical"),
    ],
)
def test_numbers_are_not_taken_for_dates_nor_codes_for_numbers(name, cells, kind):
    assert column(prepared(csv(f"{name};z;y", cells, SPREAD, Y)), name).kind == kind


def test_days_that_are_the_same_in_both_orders_decide_nothing():
    assert "set data.formats" in refusal(prepared, csv("x;y", [f"01/01/{year}" for year in range(1950, 1980)], Y))


@pytest.mark.parametrize(
    ("content", "n"),
    [(b'"a\rb",y\n' + b"0.5,0\n1.5,1\n", 2), (b"a,y\r0.5,0\n1.5,1\n", 2), (b"x\n1\n\n3\n", 3), (b"a,y\n1,2\n", 1)],
)
def test_no_row_is_lost(content, n):
    assert len(text.read("t.csv", content, Csv())) == n


@pytest.mark.parametrize("skip", [2, 1, (0, 5), (0, 1)])
def test_what_is_left_out_may_be_all(skip):
    try:
        left = len(text.read("t.csv", b"a,y\n1,2\n", Csv(skip=skip)))
    except UserError:
        left = 0
    assert left == 0


@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        ("Łódź", "cp1250"), ("Zażółć gęślą jaźń", "cp1250"), ("Müller", "cp1252"), ("Fläche in m²", "cp1252"), ("5 €", "cp1252"),
        ("don’t", "cp1252"), ("Москва", "cp1251"), ("Санкт-Петербург", "koi8_r"), ("Αθήνα", "cp1253"), ("東京", "shift_jis"),
    ],
)  # fmt: skip
def test_encodings_are_told_apart(words, encoding, capsys):
    content = csv("x;y", [words, f"{words} x"], Y).decode().encode(encoding)
    assert words in text.read("t.csv", content, Csv())["x"].tolist()
    assert encoding in capsys.readouterr().out


def test_large_integers_with_gaps_are_read_from_parquet(tmp_path):
    frame = pd.DataFrame({"x": pd.array([2**60 + 1, None, 2**60 + 3], "Int64"), "y": [0, 1, 0]})
    frame.to_parquet(tmp_path / "t.parquet")
    read = readers.read(str(tmp_path / "t.parquet"), Csv())
    assert read["x"].dropna().tolist() == [str(2**60 + 1), str(2**60 + 3)]
