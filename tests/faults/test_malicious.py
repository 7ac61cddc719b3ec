"""Malicious files are refused by name in one line, and no code in them runs."""

import gzip
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from pipeline.commands import cli, predict, show
from pipeline.core import files, scores
from pipeline.core.errors import UserError
from pipeline.core.settings import Csv
from pipeline.networks.bundle import DESCRIPTION, HISTORY, WEIGHTS, load_bundle, save_bundle
from pipeline.sources import readers
from pipeline.tables.prepared import load_prepared, load_rows, load_split
from pipeline.tracking import store
from tests.support import clones, samples
from tests.support.bundles import sign
from tests.support.chain import run, run_chain
from tests.support.payload import Payload
from tests.support.tally import Tally


def poison(kind: str, payload: Path) -> bytes:
    """Return the content of a file that creates `payload` when it is unpickled."""
    path = payload.with_suffix(".poison")
    match kind:
        case "pickle":
            return pickle.dumps(Payload(payload))
        case "torch":
            torch.save(Payload(payload), path)
        case "old torch":
            torch.save(Payload(payload), path, _use_new_zipfile_serialization=False)
        case "pt2":
            with zipfile.ZipFile(path, "w") as archive:
                for name in ("archive_format", "version", "data.pkl", "data/weights/weights.pt", "models/model.json"):
                    archive.writestr(f"model/{name}", pickle.dumps(Payload(payload)))
        case "numpy":
            np.save(path.with_suffix(".npy"), np.array([Payload(payload)], dtype=object), allow_pickle=True)
            return path.with_suffix(".npy").read_bytes()
    return path.read_bytes()


KINDS = ("pickle", "torch", "old torch", "pt2", "numpy")


def lying(content: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file whose header contradicts its content."""
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice([name for name in header if name != "__metadata__"])
    tensor = header[name]
    match rng.randrange(9):
        case 0:
            return rng.choice([2**63, 2**64 - 1, 2**40, length + 10**6, 0, 1]).to_bytes(8, "little") + content[8:]
        case 1:
            tensor["shape"] = rng.choice(
                [[2**62, 4], [2**31, 2**31, 2**31], [0, 2**62, 2**62], [10**12], [-1], ["a"], 3]
            )
        case 2:
            tensor["data_offsets"] = rng.choice([[0, 2**60], [2**60, 0], [-1, 4], [0], "x", [0.5, 1]])
        case 3:
            tensor["dtype"] = rng.choice(["F4", "F64", "BOOL", "PICKLE", "C64", "U64", "", None, 7])
        case 4:
            header[name + "x"] = tensor
        case 5:
            del header[name]
        case 6:
            header = rng.choice([[], {}, 3, None, {"__metadata__": header}])
        case 7:
            header |= {f"x{k}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(30_000)}
        case _:
            rest = rest[: rng.randrange(len(rest))]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


BOMBS: dict[str, Callable[[], bytes]] = {
    "nested": lambda: b"[" * 10**6,
    "nested whole": lambda: b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "long number": lambda: b"9" * 10**6,
    "infinite": lambda: b'{"a": 1e999, "b": NaN}',
    "many values": lambda: b"[" + b"[]," * 5_000_000 + b"[]]",
    "long": lambda: b'"' + b"a" * (files.MAX_JSON + 10) + b'"',
    "twice": lambda: b'{"sha256": {}, "sha256": []}',
    "no text": lambda: b"\xff\xfe\x00{",
}


def refused(load: Callable[[], Any], name: str, payload: Path) -> None:
    """Check that loading fails in one printable line with the name of the file or its folder, and that no code ran."""
    try:
        with pytest.raises(UserError) as caught:
            load()
    finally:
        assert not payload.exists(), f"{name} was run"
    assert name in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_bundle(folder, samples.bundle(samples.sample("mixed"), numeric="ple"), [{"epoch": 1, "train_loss": 0.5}])
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    from pipeline.stages.prepare.preparation import prepare

    of = samples.sample("mixed")
    prepare(of.raw, None, of.data, 0).save(tmp_path / "prepared")
    return tmp_path / "prepared"


def everything(folder: Path) -> None:
    load_prepared(folder)
    for split in ("train", "val", "test"):
        load_split("source", split, folder)
        load_rows("source", split, folder)


# --------------------------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION, HISTORY])
def test_a_pickle_in_a_bundles_place_is_refused(saved: Path, name: str, tmp_path: Path, tally: Tally) -> None:
    whole = (saved / name).read_bytes()
    for kind in KINDS:
        for signed in (False, True):
            with tally.trial("pickle, .pt or pt2 in a bundle's place"):
                (saved / name).write_bytes(poison(kind, tmp_path / "payload"))
                if signed and name != DESCRIPTION:
                    sign(saved)
                if signed and name == HISTORY:  # never read
                    load_bundle(saved)
                    assert not (tmp_path / "payload").exists()
                else:
                    refused(lambda: load_bundle(saved), str(saved), tmp_path / "payload")
                (saved / name).write_bytes(whole)
                sign(saved) if name != DESCRIPTION else None


def test_a_pickle_in_the_place_of_prepared_data_is_refused(prepared: Path, tmp_path: Path, tally: Tally) -> None:
    for path in [file for file in prepared.rglob("*") if file.is_file()]:
        whole = path.read_bytes()
        for kind in KINDS:
            with tally.trial("pickle in the place of prepared data"):
                path.write_bytes(poison(kind, tmp_path / "payload"))
                refused(lambda: everything(prepared), path.name, tmp_path / "payload")
        path.write_bytes(whole)
    everything(prepared)


@pytest.mark.parametrize(
    "name", ["new.csv", "new.parquet", "new.csv.gz", "new.csv.bz2", "new.csv.xz", "new.zip", "new.pkl", "new.pt"]
)
def test_a_pickle_as_the_table_of_predict_is_refused(
    saved: Path, name: str, tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        with tally.trial("pickle as a table"):
            content = poison(kind, tmp_path / "payload")
            Path(name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
            refused(lambda: predict.predict(saved, name, Path("out.csv")), name, tmp_path / "payload")
            refused(lambda: readers.read(name, Csv()), name, tmp_path / "payload")


def test_a_pickle_that_an_arrow_type_carries_is_not_run(tmp_path: Path, tally: Tally) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for kind in ("arrow.py_extension_type", "pandas.extension"):
        with tally.trial("pickle in the types of a Parquet file"):
            extra = {
                b"ARROW:extension:name": kind.encode(),
                b"ARROW:extension:metadata": poison("pickle", tmp_path / "payload"),
            }
            schema = pa.schema([pa.field("a", pa.int64(), metadata=extra)])
            parquet.write_table(pa.table([[1, 2]], schema=schema), tmp_path / "t.parquet")
            assert readers.read(str(tmp_path / "t.parquet"), Csv())["a"].tolist() == [1, 2]
            assert not (tmp_path / "payload").exists()


def test_the_mlflow_model_is_code_and_files_and_its_bundle_is_checked(
    project: Callable[..., Path], tmp_path: Path, tally: Tally
) -> None:
    import mlflow

    folder = project({"data.source": "sklearn:iris", "data.target": "target", "data.task": "multiclass"})
    run_chain("fetch", "prepare", "train")
    from pipeline.core import config

    uri = store.tracking_uri(config.load().tracking)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("nycflights")
    assert experiment is not None
    (model,) = client.search_logged_models([experiment.experiment_id])
    local = Path(
        mlflow.artifacts.download_artifacts(f"models:/{model.model_id}", dst_path=str(tmp_path / "m"), tracking_uri=uri)
    )
    found = [file for file in local.rglob("*") if file.is_file()]
    assert len(found) > 5
    for file in [
        *found,
        *(file for place in ("data", "models") for file in (folder / place).rglob("*") if file.is_file()),
    ]:
        assert file.suffix in (
            ".py",
            ".json",
            ".csv",
            ".safetensors",
            ".yaml",
            ".yml",
            ".txt",
            ".parquet",
            ".png",
            "",
        ), file
        assert not file.read_bytes().startswith((b"\x80", b"PK\x03\x04")), f"{file} is a pickle or an archive of them"
    (weights,) = local.rglob(WEIGHTS)
    weights.write_bytes(poison("pickle", tmp_path / "payload"))
    with tally.trial("pickle in the folder of the MLflow model"):
        refused(lambda: mlflow.pyfunc.load_model(str(local)), WEIGHTS, tmp_path / "payload")


# ------------------------------------------------------------------------------------------------ bombs, false sizes


@pytest.mark.parametrize("kind", BOMBS)
def test_json_that_would_fill_the_memory_is_refused(
    saved: Path, prepared: Path, kind: str, tmp_path: Path, tally: Tally
) -> None:
    content, payload = BOMBS[kind](), tmp_path / "payload"
    report = tmp_path / "report"
    report.mkdir()
    for path, load in {
        saved / DESCRIPTION: lambda: load_bundle(saved),
        prepared / "schema.json": lambda: load_prepared(prepared),
        report / "metrics.json": lambda: scores.load_scores(report),
    }.items():
        with tally.trial("JSON bomb"):
            path.write_bytes(content)
            refused(load, path.name, payload)


def test_a_false_tensor_header_is_refused(saved: Path, prepared: Path, tmp_path: Path, tally: Tally) -> None:
    rng = random.Random(0)
    for _ in range(tally.times(quick=20, torture=300)):
        places = [saved / WEIGHTS, prepared / "preprocessor.safetensors", prepared / "source/val.safetensors"]
        path = rng.choice(places)
        whole = path.read_bytes()
        with tally.trial("safetensors header that lies"):
            path.write_bytes(lying(whole, rng))
            if path.name == WEIGHTS:
                sign(saved)
                refused(lambda: load_bundle(saved), str(saved), tmp_path / "payload")
            else:
                refused(lambda: everything(prepared), path.name, tmp_path / "payload")
        path.write_bytes(whole)
        sign(saved)
    load_bundle(saved)
    everything(prepared)


def leaf(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        node: Any = body
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


ABSURD = {
    "a wide layer": leaf("model", "hidden", value=[10**12]),
    "two wide layers": leaf("model", "hidden", value=[10**6, 10**6]),
    "many layers": leaf("model", "hidden", value=[1] * 10**5),
    "members": leaf("model", "ensemble", value=10**12),
    "some members": leaf("model", "ensemble", value=1000),
    "members unsaid": leaf("model", "ensemble", value="auto"),
    "embedding": lambda body: body["model"].update(categories="embedding", embedding=10**12),
    "frequencies": lambda body: body["model"].update(numeric="plr", plr={"frequencies": 10**9, "sigma": 0.1, "width": 10**9}),
    "temperature": leaf("temperature", value=0.0),
    "temperature as text": leaf("temperature", value="1"),
    "parameter name": leaf("params", value={"a\nb": 1}),
    "no parameters": leaf("params", value=None),
    "more": leaf("more", value=1),
    "classes": leaf("target", "classes", value=[str(k) for k in range(10**5)]),
    "one class": leaf("target", "classes", value=["yes"]),
    "equal classes": leaf("target", "classes", value=["1", 1]),
    "no spread": leaf("target", "std", value=0.0),
    "scaling": leaf("scaling", value="quantile"),
    "date format": leaf("schema", "columns", 0, "format", value="%n" * 1000),
    "parts": leaf("schema", "columns", 0, "parts", value=["date"]),
    "columns": lambda body: body["schema"]["columns"].extend(body["schema"]["columns"]),
    "categories": leaf("schema", "columns", 2, "categories", value=[str(k) for k in range(50_000)]),
    "negative": leaf("schema", "columns", 0, "missing", value=-1),
}  # fmt: skip


@pytest.mark.parametrize("what", ABSURD)
def test_a_bundle_with_valid_checksums_and_absurd_sizes_is_refused(
    saved: Path, what: str, tmp_path: Path, tally: Tally
) -> None:
    with tally.trial("bundle with fitting sums and absurd sizes"):
        sign(saved, ABSURD[what])
        refused(lambda: load_bundle(saved), str(saved), tmp_path / "payload")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("network.0.counts", torch.tensor([[1]])),
        ("network.0.counts", torch.tensor([10**15, 1])),
        ("network.0.counts", torch.tensor([0.5, 1])),
        ("network.0.edges", torch.full((3,), torch.nan)),
        ("preprocessor.mean_", torch.zeros(3)),
        ("preprocessor.mean_", torch.zeros(3, dtype=torch.float64)),
        ("preprocessor.scale_", torch.full((2,), torch.inf, dtype=torch.float64)),
        ("network.1.bias", torch.zeros(8, dtype=torch.complex64)),
        ("network.1.bias", torch.zeros(8, dtype=torch.int64)),
        ("network.1.bias", torch.zeros(8, 1)),
        ("network.9.bias", torch.zeros(8)),
    ],
)
def test_tensors_of_other_shapes_or_types_are_refused(
    saved: Path, name: str, tensor: torch.Tensor, tmp_path: Path, tally: Tally
) -> None:
    with tally.trial("bundle with fitting sums and other tensors"):
        save_file(load_file(saved / WEIGHTS) | {name: tensor}, saved / WEIGHTS)
        sign(saved)
        refused(lambda: load_bundle(saved), str(saved), tmp_path / "payload")


@pytest.mark.parametrize(
    "change",
    [
        {"x_num": torch.zeros(3, 9)},
        {"x_num": torch.full((160, 3), torch.nan)},
        {"x_cat": torch.full((160, 2), 255, dtype=torch.uint8)},
        {"x_cat": torch.full((160, 2), -1, dtype=torch.int16)},
        {"y": torch.full((160,), 7)},
        {"y": torch.zeros(160)},
        {"y": torch.tensor(1)},
        {"rows": torch.full((160,), -5)},
        {"more": torch.zeros(1)},
    ],
    ids=str,
)
def test_prepared_rows_that_do_not_fit_the_schema_are_refused(
    prepared: Path, change: dict[str, torch.Tensor], tmp_path: Path, tally: Tally
) -> None:
    path = prepared / "source/train.safetensors"
    assert len(load_file(path)["y"]) == 160
    with tally.trial("prepared rows that do not fit the schema"):
        save_file(load_file(path) | change, path)
        refused(lambda: everything(prepared), str(path), tmp_path / "payload")


# ---------------------------------------------------------------------------------------------------- where we write


def test_a_link_that_leads_out_of_the_project_is_not_written_through(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, outside = tmp_path / "project", tmp_path / "outside"
    for folder in (project, outside):
        folder.mkdir()
    (outside / "mine").write_text("mine")
    monkeypatch.chdir(project)
    (project / "models").symlink_to(outside)
    (project / "file").symlink_to(outside / "mine")
    (project / "within").symlink_to(project)
    for path in ("models/a", "models/train/a", "../outside/a", "models/../a"):
        with tally.trial("output folder that is a link to outside"):
            refused(partial(files.write_text, Path(path), "x"), path, tmp_path / "payload")
    with tally.trial("output folder that is a link to outside"):
        files.write_text(Path("file"), "ours")  # the link is replaced, not its target
        files.write_text(Path("within/b"), "x")
        assert (outside / "mine").read_text() == "mine"
        assert [entry.name for entry in outside.iterdir()] == ["mine"]
        assert (project / "file").read_text() == "ours"
        assert not (project / "file").is_symlink()


def test_a_stages_output_that_is_a_link_to_outside_is_never_written_through(tmp_path: Path, tally: Tally) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    folder = clones.clone(
        tmp_path / "clone", {"data.source": "sklearn:iris", "data.target": "target", "data.task": "multiclass"}
    )
    for link in ("data/raw", "data"):
        with tally.trial("stage output that is a link to outside"):
            if link == "data":
                for name in ("data/raw", "data/source/.gitignore"):
                    subprocess.run(["rm", "-r", folder / name], check=False)
                (folder / "data").rename(tmp_path / "data")
            (folder / link).symlink_to(outside)
            environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
            done = subprocess.run(
                ["dvc", "repro", "fetch"], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert [entry.name for entry in outside.iterdir()] == ["mine"], done.stdout + done.stderr
            assert "Traceback" not in done.stdout + done.stderr
            assert done.returncode == 0 or "error" in (done.stdout + done.stderr).lower()


# ------------------------------------------------------------------------------------- names, labels, spreadsheets


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", " =1", "＝1"]


def test_written_cells_are_never_formulas_and_lose_nothing(tmp_path: Path, tally: Tally) -> None:
    plain = ["a", "-1.5", "+3", "1e5", "a=b", "", "it's"]
    table = pd.DataFrame({name: [*FORMULAS, *plain] for name in [*FORMULAS, "plain"]}).assign(number=-1.5)
    with tally.trial("formula in a CSV that we write"):
        files.write_csv(tmp_path / "t.csv", table)
        found = pd.read_csv(tmp_path / "t.csv", keep_default_na=False, dtype={"plain": str})
        assert found["number"].tolist() == [-1.5] * len(table)
        assert [name.removeprefix("'") for name in found.columns] == list(table.columns)
        cells = found["plain"].tolist()
        assert [cell[1:] for cell in cells[: len(FORMULAS)]] == FORMULAS
        assert all(cell.startswith("'") for cell in cells[: len(FORMULAS)])
        assert cells[len(FORMULAS) :] == plain


def test_names_and_labels_are_shown_and_never_interpreted(
    project: Callable[..., Path], tally: Tally, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(
        {"data.source": "t.csv", "data.target": "=target", "data.task": "multiclass", "register.name": "a<b>{0}$x"}
    )
    rng = np.random.default_rng(0)
    payload = folder / "payload"
    labels = [
        f"=cmd|'touch {payload}'!A1",
        f"$(touch {payload})",
        "<script>x</script>",
        "$\\frac{x}$ {0.__class__} %s [red]x[/red]",
    ]
    number = rng.normal(size=200)
    table = pd.DataFrame({"@n": number, "\x1b[2Jn": rng.normal(size=200), "[bold]": rng.choice(["=1", "{x}"], 200)})
    table["=target"] = np.array(labels)[np.digitize(number, [-0.6, 0, 0.6])]
    table.to_csv(folder / "data/source/t.csv", index=False)
    with tally.trial("names and labels that a program might obey"):
        run_chain()
        predict.predict(Path("models/champion"), "data/source/t.csv", Path("out.csv"))
        show.show()
        assert not payload.exists()
        assert "\x1b[2J" not in capsys.readouterr().out
        for path in [Path("out.csv"), *Path("models").rglob("*.csv"), *Path("reports").rglob("*.csv")]:
            for row in pd.read_csv(path, header=None, dtype=str, keep_default_na=False).to_numpy().ravel():
                assert not row.startswith(("=", "+", "@")), (path, row)
        card = Path("models/champion/README.md").read_text()
        assert "<script>" not in card
        assert "# a&lt;b&gt;" in card


@pytest.mark.usefixtures("finished")
def test_a_scratch_run_of_one_stage_refuses_a_bundle_that_was_changed(tally: Tally) -> None:
    with tally.trial("bundle with sums that do not fit"):
        path = Path("models/train") / WEIGHTS
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
        refused(lambda: run("evaluate@train"), WEIGHTS, Path("payload"))


def test_the_ui_listens_on_loopback_whatever_the_environment_says(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    project({})
    called: list[list[str]] = []
    monkeypatch.setenv("MLFLOW_HOST", "0.0.0.0")
    monkeypatch.setattr(os, "execv", lambda program, command: called.append(command))
    with tally.trial("server asked to listen everywhere"):
        cli.ui(5123)
        (command,) = called
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert "http://127.0.0.1:5123" in capsys.readouterr().out
