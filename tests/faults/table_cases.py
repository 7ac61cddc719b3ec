"""Hostile tables by number: odd exports, damaged files and attacks."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import random
import string
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet

from pipeline.core.settings import Config, Task
from pipeline.evaluation import report
from pipeline.networks.bundle import Bundle, load_bundle, save_bundle
from pipeline.sources import readers
from pipeline.stages.prepare.preparation import describe, prepare
from pipeline.tables.raw import save_raw
from tests.support import samples
from tests.support.payload import Payload

Made = tuple[str, bytes]  # file name and content
torch.set_num_threads(1)

CELLS: dict[str, Callable[[random.Random], str]] = {
    "number": lambda r: f"{r.gauss(0, 1):.4g}",
    "whole": lambda r: str(r.randrange(5)),
    "huge": lambda r: r.choice(["1e400", "-1e400", "1e308", "-1e308", "1e-400", "9" * 400, "9" * 25, "-0", "1e3", "0x10", "1_000"]),
    "not a number": lambda r: r.choice(["inf", "-inf", "nan", "NaN", "Infinity", "1", "2.5", "", "NA", "null", "None", "#N/A"]),
    "text": lambda r: r.choice(["red", "green", "blue", "", "rot, grün", "a;b"]),
    "mixed": lambda r: r.choice(["1", "x", "2.5", "true", "", "2020-01-01", "1,5", "１２", "٣", "²"]),
    "id": lambda r: "".join(r.choices(string.ascii_letters, k=12)),
    "empty": lambda r: "",
    "constant": lambda r: "7",
    "flag": lambda r: r.choice(["true", "false", "TRUE", ""]),
    "formula": lambda r: r.choice(["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "$x$", "{0.__class__}", "%s", "<script>"]),
    "terminal": lambda r: r.choice(["\x1b[2J", "\x07", "\u202e", "\u200b", "\ufeff", "e\u0301", "é", "😀", "\x00", "\x85", "\u2028"]),
    "day": lambda r: f"{r.randrange(1900, 2100)}-{r.randrange(1, 13):02}-{r.randrange(1, 29):02}",
    "odd day": lambda r: r.choice(["0000-00-00", "9999-12-31", "0001-01-01", "2020-02-30", "2020-13-01", "1-1-1", "99999-01-01"]),
    "german": lambda r: f"{r.randrange(1, 32)}.{r.randrange(1, 13)}.{r.randrange(1, 2100)}",
    "american": lambda r: f"{r.randrange(1, 14)}/{r.randrange(1, 32)}/{r.randrange(1500, 2100)} {r.randrange(25)}:00",
    "zoned": lambda r: f"2020-01-{r.randrange(1, 29):02}T{r.randrange(24):02}:00:00{r.choice(['Z', '+02:00', '-99:00', '', '+14:00'])}",
    "clock": lambda r: f"{r.randrange(26)}:{r.randrange(61):02}",
    "long": lambda r: r.choice(["x", "y", '"' + "a\n" * r.choice([1, 50_000]) + '"']),
    "quoted": lambda r: r.choice(['"a ""b"" c"', '"x\ny"', '"', "a\"b", "\'", '"1"', "\\"]),
}  # fmt: skip
ENCODINGS = [
    "utf-8",
    "utf-8",
    "latin-1",
    "utf-16",
    "cp500",
    "utf-7",
    "idna",
    "punycode",
    "unicode_escape",
    "ascii",
    "utf-32",
]
NAMES = ["", " ", "a", "a", "A", "1", "nan", "Unnamed: 0", "=1+1", "@x", "$x$", "{0}", "%s", "<b>", "index", "level_0", "label", "é", "é",
         "\x1b[31m", "n" * 50_000, "\u202etxt", "a.1", "wörd/with slash", "..", "__class__", "target", "rows", "\t"]  # fmt: skip


def table(rng: random.Random, columns: int = 0, rows: int = -1) -> str:
    kinds = rng.choices(list(CELLS), k=columns or rng.randrange(1, 9))
    if rng.random() < 0.8:  # mostly cells that the reader accepts, to test the later steps too
        kinds = [kind if kind not in ("quoted", "terminal", "huge", "not a number") else "number" for kind in kinds]
    names = [rng.choice(NAMES) if rng.random() < 0.1 else f"c{place}" for place in range(len(kinds))]
    label = rng.choice(["text", "flag", "whole", "number", "formula", "mixed", "huge"])
    n = rows if rows >= 0 else rng.choice([0, 1, 3, 10, *[60] * 5, *[200] * 8, 1000])
    lines = [[*names, "label"]] + [[CELLS[kind](rng) for kind in [*kinds, label]] for _ in range(n)]
    comma = rng.choice([",", ",", ",", ";", "\t", "|"])
    end = rng.choice(["\n", "\n", "\n", "\r\n", "\r"])
    torn = rng.random() < 0.1

    def cell(text: str) -> str:
        whole = text.startswith('"') or torn or not set(text) & {comma, '"', "\n", "\r"}
        return text if whole else '"' + text.replace('"', '""') + '"'

    return end.join(comma.join(map(cell, line)) for line in lines) + rng.choice([end, ""])


def plain(rng: random.Random) -> Made:
    return rng.choice([*["t.csv"] * 9, "t.tsv", "t.txt"]), table(rng).encode()


def encoded(rng: random.Random) -> Made:
    name = rng.choice(
        ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "cp500", "utf-7", "shift-jis", "punycode"]
    )
    return "t.csv", table(rng, 3, 60).encode(name, "replace")


def damaged(rng: random.Random) -> Made:
    content = bytearray(table(rng, rows=60).encode())
    for _ in range(rng.choice([1, 5, 100])):
        place = rng.randrange(len(content))
        match rng.randrange(4):
            case 0:
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                del content[place : place + rng.randrange(1, 40)]
            case 2:
                content[place:place] = rng.choice(
                    [b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"'", b"\\", b";", b",,,,,"]
                )
            case _:
                del content[place:]
        if not content:
            break
    return "t.csv", bytes(content)


def shape(rng: random.Random) -> Made:
    return "t.csv", rng.choice(
        [
            lambda: b"",
            lambda: b"\n" * 1000,
            lambda: b"a,label",
            lambda: b"," * 100_000,
            lambda: b"label\n" + b"x\ny\n" * 50,
            lambda: bytes((",".join(f"c{k}" for k in range(10_000)) + "\n" + ",".join("1" * 10_000) + "\n"), "utf-8"),
            lambda: bytes(
                ",".join(f"c{k}" for k in range(300))
                + ",label\n"
                + "".join("1,2," * 150 + rng.choice("xy") + "\n" for _ in range(40)),
                "utf-8",
            ),
            lambda: bytes((",".join(f"c{k}" for k in range(30_000)) + "\n"), "utf-8"),
            lambda: b"a,label\n" + b",x\n,y\n" * 50,
            lambda: b"a,label\n" + b"1,\n" * 50,
            lambda: b'a,label\n"' + b"x\n" * 100_000,
            lambda: b"a,label\n" + b"x" * 3_000_000 + b",y\n1,z\n",
            lambda: bytes(("a" * 1_000_000 + ",label\n1,2\n"), "utf-8"),
            lambda: b"\xef\xbb\xbf" * 3 + b"a,label\n1,x\n2,y\n",
            lambda: rng.randbytes(rng.randrange(1, 20_000)),
            lambda: b"a,label\n" + b"1,x\n" * 200_000,
            lambda: b'"' * rng.randrange(1, 9999),
            lambda: b"a,b,label\n1,2,3,4\n1\n,,,\n",
        ]
    )()


def false_kind(rng: random.Random) -> Made:
    content = rng.choice(
        [
            pickle.dumps(Payload(Path("payload"))),
            b"PK\x03\x04" + rng.randbytes(200),
            b"PAR1",
            b"\x1f\x8b" + rng.randbytes(99),
            b"{}" * 99,
        ]
    )
    return rng.choice(
        ["t.csv", "t.parquet", "t.csv.gz", "t.csv.bz2", "t.csv.xz", "t.zip", "t.parquet.gz", "t.pkl", "t.csv.pkl"]
    ), content


PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@cache
def bomb(kind: str) -> bytes:
    """Pack a table of about 100 MB into a file of kilobytes."""
    rows = b"1,x\n" * 2**19
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("../../t.csv", "w") as member:
            for _ in range(50):
                member.write(rows)
        return buffer.getvalue()
    return PACK[kind](rows) * 50  # one after another: one file


@cache
def parquet_bomb() -> bytes:
    buffer = io.BytesIO()
    part = pa.table({"a": np.zeros(10**6, np.int64), "label": np.zeros(10**6, np.int64)})
    with parquet.ParquetWriter(buffer, part.schema) as writer:
        for _ in range(100):
            writer.write_table(part)
    return buffer.getvalue()


def packed(rng: random.Random) -> Made:
    kind = rng.choice(["gz", "bz2", "xz", "zip", "parquet", "torn", "torn", "whole"])
    if kind == "parquet":
        return "t.parquet", parquet_bomb()
    if kind in ("torn", "whole"):
        content, suffix = table(rng, 3, 60).encode(), rng.choice(["gz", "bz2", "xz"])
        content = PACK[suffix](content)
        return f"t.csv.{suffix}", content if kind == "whole" else content[
            : rng.randrange(len(content))
        ] + rng.randbytes(rng.choice([0, 9]))
    return f"t.csv.{kind}" if kind != "zip" else "t.zip", bomb(kind)


def stored(rng: random.Random) -> Made:
    """Parquet with types that CSV lacks, whole or damaged."""
    n = 60
    columns: dict[str, Any] = {
        "nested": [[1, 2]] * n, "dict": [{"a": 1}] * n, "bytes": [b"\xff"] * n, "wide": np.arange(n).astype("uint64") + 2**63,
        "half": np.linspace(0, 1, n).astype("float16"), "inf": [np.inf, *range(n - 1)], "time": pd.date_range("1700", periods=n, tz="UTC"),
        "delta": pd.to_timedelta(range(n), unit="D"), "cat": pd.Categorical(["a", "b"] * (n // 2)), "null": [None] * n, "real": np.random.default_rng(1).normal(size=n),
        "decimal": pa.array([1] * n, pa.decimal128(38, 10)).to_pandas(), "date": pa.array([-(10**5)] * n, pa.date32()).to_pandas(),
    }  # fmt: skip
    chosen = rng.sample(list(columns), rng.randrange(1, 5))
    frame = pd.DataFrame({name: columns[name] for name in chosen}).assign(label=["x", "y"] * (n // 2))
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    content = bytearray(buffer.getvalue())
    for _ in range(rng.choice([0, 0, 1, 20])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return "t.parquet", bytes(content[: rng.choice([len(content), len(content), rng.randrange(len(content))])])


def options(rng: random.Random) -> dict[str, Any]:
    pick = rng.random
    found: dict[str, Any] = {"data__target": "label", "data__csv": {}}
    if pick() < 0.1:
        found["data__csv"] |= {"separator": rng.choice(list(",;|")), "decimal": rng.choice(".,")}
    if pick() < 0.1:
        found["data__split"] = {"by": rng.choice(["time:c0", "group:c0", "group:c0", "time:label"])}
    if pick() < 0.1:
        found["data__transfer"] = {"column": "c0", "values": rng.choice([["red"], [1], ["7"], [True], ["nothing"]])}
    if pick() < 0.1:
        found["data__kinds"] = {"c0": rng.choice(["numeric", "categorical", "drop"])}
    if pick() < 0.05:
        found["data__target"] = rng.choice(["c0", "", "nothing", "lable"])
    return found | {
        "data__scaling": rng.choice(["standard", "quantile", "robust"]),
        "data__duplicates": rng.choice(["keep", "drop"]),
    }


def _task(raw: pd.DataFrame) -> Task:
    label = raw.get("label", pd.Series([0, 1]))
    if pd.api.types.is_numeric_dtype(label.dtype) and label.nunique() > 10:
        return "regression"
    return "binary" if label.nunique() == 2 else "multiclass"


def case(number: int, folder: Path) -> None:
    os.chdir(folder)
    rng = random.Random(f"table {number}")
    name, content = rng.choice(
        [plain, plain, plain, plain, plain, plain, encoded, damaged, shape, false_kind, packed, stored]
    )(rng)
    (folder / name).write_bytes(content)
    try:
        settings = samples.configuration(
            rng.choice(["binary", "multiclass", "multiclass", "regression"]), **options(rng)
        )
        raw = readers.read(str(folder / name), settings.data.csv)
        save_raw(raw, folder / "raw.parquet")
        prepared = prepare(pd.read_parquet(folder / "raw.parquet"), None, settings.data, 0)
        assert describe(prepared.schema).replace("\n", "").isprintable()
        if number % 4 == 0:  # about a tenth of all cases, since a third can be prepared
            trained(samples.sampled(prepared, settings.data, raw), settings, folder)
    finally:
        assert not (folder / "payload").exists(), "code in the file was run"


def trained(of: samples.Sample, settings: Config, folder: Path) -> None:
    """Train an epoch, then write the bundle and the report with its plots."""
    network = samples.network(of, hidden=(4,))
    samples.train(network, of, samples.settings(epochs=1))
    bundle = Bundle((network.eval(),), settings.model, of.schema, of.target, of.preprocessor, {})
    save_bundle(folder / "model", bundle, [])
    loaded = load_bundle(folder / "model")
    assert len(loaded.predict(of.raw)) == len(of.raw)
    judged = report.report(loaded.outputs(of.test), of.test.y, of.target)
    report.save(folder / "report", judged)
