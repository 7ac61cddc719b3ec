"""A source becomes one table, or one clear line without secrets."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipeline.sources import readers
from tests.support.sources import CELLS, TABLE, read, refusal, same, text


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Return a function that writes a file under data/source/ of an empty project and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / readers.SOURCE_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def zipped(*names: str, content: bytes = b"a,b\n1,2\n") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_each_delimiter_is_found_with_and_without_a_byte_order_mark(source, separator, start, end):
    same(read(source("t.csv", start + text(separator).replace("\n", end))), CELLS)


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("a;b\n1,5;x\n2,5;y\n", ["a", "b"]),
        ('a,b\n"x;y;z",1\n"x;y;w",2\n', ["a", "b"]),
        ("a|b\nx,y|1\nz,w|2\n", ["a", "b"]),
        ("a\n1\n2\n", ["a"]),
        ('a,b\n"two\nlines",1\n"x",2\n', ["a", "b"]),
        ("a,b\nx\u2028y,1\nx\x0cz,2\n", ["a", "b"]),
        ("\n\na,b\n1,2\n\n3,4\n", ["a", "b"]),
    ],
)
def test_delimiters_inside_cells_do_not_split_them(source, content, columns):
    table = read(source("t.csv", content))
    assert (list(table.columns), len(table)) == (columns, 2)


def test_tsv_is_split_only_at_tabs(source):
    table = read(source("t.tsv", "a\tb\n1,2\t3\n4,5\t6\n"))
    assert table["a"].tolist() == ["1,2", "4,5"]


def test_a_named_separator_is_used(source):
    name = source("t.csv", "a;b\n1,5;x|y\n-2,25;z\n")
    same(read(name, separator=";"), pd.DataFrame({"a": ["1,5", "-2,25"], "b": ["x|y", "z"]}, dtype="str"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_other_encodings_are_read_when_named_and_refused_when_not(source, encoding):
    name = source("t.csv", text().encode(encoding))
    same(read(name, encoding=encoding), CELLS)
    if encoding != "utf-16":  # whose byte order mark names it
        message = refusal(name, encoding="utf-8")
        assert "not utf-8 text" in message
        assert "data.csv.encoding" in message


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("latin-1", "Köln"), ("cp1252", "“naïve” café – €5"), ("cp1251", "Санкт-Петербург"), ("utf-16", "Köln")],
)
def test_an_encoding_other_than_utf_8_is_found_and_said(source, encoding, shown, capsys):
    rows = "".join(f"{n},{shown} und größer\n" if encoding == "latin-1" else f"{n},{shown}\n" for n in range(50))
    name = source("t.csv", ("n,place\n" + rows).encode(encoding))
    assert shown in read(name)["place"].iloc[7]
    if encoding != "utf-16":
        assert "read as" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "line", "cells"),
    [
        ("a,b,c\n1,2,3\n4,5\n6,7,8\n", 3, 2),
        ("a,b,c\n1,2,3\n4,5,6,7\n6,7,8\n", 3, 4),
        ("a,b\n1,2\n3\n", 3, 1),
        ('a,b\n"x\ny",2\n3,4,5\n', 4, 3),
        ("a,b,c\n" + "1,2,3\n" * 500 + "1,2\n", 502, 2),
        ("a,b,c\n" + "1,2,3\n" * 500 + "1,2,3,4\n" + "1,2,3\n" * 500, 502, 4),
    ],
)
def test_ragged_row_is_refused_with_its_line(source, content, line, cells):
    message = refusal(source("t.csv", content))
    assert f"line {line}: {cells} cell" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("\ufeff", "is empty"),
        ("a,b\n", "header but no rows"),
        ("a,b", "header but no rows"),
        ("a,b,a\n1,2,3\n", "must be unique, got 'a' 2 times"),
        ('a,b\n"x,1\ny,2\n', "t.csv"),
    ],
)
def test_text_without_a_table_is_refused(source, content, said):
    assert said in refusal(source("t.csv", content))


@pytest.mark.parametrize("name", ["t.xlsx", "t.json", "t"])
def test_file_of_another_kind_is_refused_by_its_suffix(source, name):
    message = refusal(source(name, b"PK\x03\x04\x14\x00\x06\x00"))
    assert ".csv" in message
    assert ".parquet" in message


# ------------------------------------------------------------------------------------------------ archives, Parquet


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zip", lambda content: zipped("inner.csv", content=content)),
        (".GZ", gzip.compress),
    ],
)
def test_packed_text_is_unpacked(source, suffix, pack):
    same(read(source(f"t.csv{suffix}", pack(text().encode()))), CELLS)


def test_zip_may_hold_parquet_and_other_files(source):
    buffer = io.BytesIO()
    TABLE.to_parquet(buffer)
    with zipfile.ZipFile(source_path := Path("t.zip").absolute(), "w") as archive:
        archive.writestr("README.md", "a,b")
        archive.writestr("__MACOSX/._T.csv", "x")
        archive.writestr("folder/T.PARQUET", buffer.getvalue())
    same(read(str(source_path)))


def encrypted() -> bytes:
    content = bytearray(zipped("a.csv"))
    content[6] |= 1
    content[content.find(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


packed: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [(f"t.csv{suffix}", b"a,b\n1,2\n", f"not a complete {suffix} file") for suffix in [*packed, ".zip"]]
    + [(f"t.csv{suffix}", pack(text().encode())[:-9], f"not a complete {suffix}") for suffix, pack in packed.items()]
    + [(f"t.csv{suffix}", pack(b"a" * 999)[:20] + b"x" * 40, "not a complete") for suffix, pack in packed.items()]
    + [
        ("t.csv.gz", gzip.compress(b"")[:10] + b"\xff" * 30, "not a complete .gz file"),
        ("t.zip", zipped("a.csv", content=b"a,b\n1,2\n").replace(b"1,2", b"1,3"), "not a complete .zip file"),
        ("t.zip", zipped("a.csv", "b.csv"), "got 2: a.csv, b.csv"),
        ("t.zip", zipped("a.md"), "got 0: none"),
        ("t.zip", encrypted(), "encrypted"),
        ("t.parquet", b"PAR1", "not a Parquet file"),
        ("t.parquet", b"PAR1" + b"x" * 100 + b"PAR1", "not a Parquet file"),
        ("t.parquet.gz", gzip.compress(b"no"), "not a Parquet file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip bytes contain the time, so they cannot be ids
)
def test_broken_archive_is_refused(source, name, content, said):
    message = refusal(source(name, content))
    assert said in message
    assert name in message


def test_parquet_keeps_types_and_a_named_index_becomes_a_column(source, tmp_path):
    table = TABLE.assign(day=pd.to_datetime(["2020-01-01", None, "2020-01-03"]), kind=pd.Categorical(["a", "b", "a"]))
    name = source("t.parquet", b"")
    path = tmp_path / readers.SOURCE_FOLDER / name
    table.to_parquet(path)
    pd.testing.assert_frame_equal(read(name), table)
    table.set_index("id").to_parquet(path)
    pd.testing.assert_frame_equal(read(name), table)
    table.iloc[::-1].to_parquet(path)
    pd.testing.assert_frame_equal(read(name), table.iloc[::-1].reset_index(drop=True))
    table.head(0).to_parquet(path)
    assert "no rows" in refusal(name)


def test_numeric_parquet_column_names_become_text(source, tmp_path):
    name = source("t.parquet", b"")
    pd.DataFrame({1: [1, 2], 2: [3, 4]}).to_parquet(tmp_path / readers.SOURCE_FOLDER / name)
    assert list(read(name).columns) == ["1", "2"]


# ------------------------------------------------------------------------------------------------------------ names


def test_a_path_takes_precedence_over_the_source_folder(source, tmp_path):
    name = source("t.csv", "a,b\n1,2\n")
    (tmp_path / "t.csv").write_text(text(), encoding="utf-8")
    same(read(name), CELLS)
    assert read(str(tmp_path / readers.SOURCE_FOLDER / name)).shape == (1, 2)


def test_missing_file_is_refused_with_the_nearest_name(source):
    source("flights.csv", text())
    assert "data/source/flights.csv" in refusal("flight.csv")
    assert "data/source" in refusal("nothing-like-it.parquet")
    assert "folder" in refusal("data")
    for endless in ("/dev/zero", "file:///dev/zero"):
        assert "is not a file" in refusal(endless)
    assert "sklearn:irs" in refusal("sklearn:irs")
    assert "iris" in refusal("sklearn:irs")


def test_table_at_an_address_is_read(server, tmp_path):
    host, answers = server
    answers["/t.csv"], answers["/t.csv.gz"] = text().encode(), gzip.compress(text().encode())
    same(read(f"http://{host}/t.csv"), CELLS)
    same(read(f"http://{host}/t.csv.gz?token=1"), CELLS)
    (tmp_path / "t.csv").write_text(text(), encoding="utf-8")
    same(read((tmp_path / "t.csv").as_uri()), CELLS)
    assert "does not exist" in refusal((tmp_path / "u.csv").as_uri())


def test_a_file_that_is_only_in_the_project_of_an_experiment_is_named_with_what_to_type(tmp_path, monkeypatch):
    (tmp_path / "project/data/source").mkdir(parents=True)
    (tmp_path / "project/data/source/t.csv").write_text("a,y\n1,2\n")
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    assert "dvc add data/source/t.csv, and git add data/source/t.csv.dvc" in refusal("data/source/t.csv")
    assert "put the file under data/source/" in refusal("data/source/u.csv")


@pytest.mark.parametrize(
    "path",
    [
        "/none.csv",
        "/403",
        "/500",
        "/hangup",
        "/t.csv",
        "/t.parquet",
        "/t.csv.gz",
        "/t.zip",
        "/u.csv",
        "/v.csv",
        "/w.csv",
    ],
)
def test_no_secret_of_an_address_is_shown(server, path):
    host, answers = server
    answers |= {"/t.csv": b"", "/t.parquet": b"no", "/t.csv.gz": b"no", "/t.zip": zipped("a.md")}
    answers |= {"/u.csv": b"a,b\n", "/v.csv": b"a,b,c\n1,2,3\n1,2,3\n1,2,3\n1,2,3\n1,2\n1,2,3\n", "/w.csv": b"\xff\xfe"}
    message = refusal(f"http://alice:hunter2@{host}{path}?token=hunter2#hunter2")
    assert "hunter2" not in message
    assert "alice" not in message
    assert path in message


def test_unknown_scheme_is_refused():
    assert "nope://host/t.csv" in refusal("nope://alice:hunter2@host/t.csv")
