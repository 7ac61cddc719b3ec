"""Commands that are not stages."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.commands import cli, predict
from pipeline.core import config
from pipeline.networks.bundle import load_bundle
from tests.support.shared import copied


def command(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    cli.main()


FRUIT = {"data.source": "t.csv", "data.target": "fruit", "data.task": "binary"}


def write_fruit() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"weight": rng.normal(size=200).round(3), "colour": rng.choice(["red", "green"], 200)})
    table["fruit"] = np.where(table["weight"] > 0, "apple", "pear")
    table.to_csv("data/source/t.csv", index=False)


@pytest.fixture
def trained(project: Callable[..., Path], built_once: Callable[..., Path]) -> Path:
    built = built_once("fruit", FRUIT, "fetch", "prepare", "train", source=write_fruit)
    return copied(built, project(FRUIT))


def test_predict_writes_label_and_probabilities_in_the_order_of_the_rows(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = pd.DataFrame(
        {"more": ["x"] * 5, "colour": ["red", "blue", None, "blue", "pink"], "weight": [2, -2, 2, -2, None]}
    )
    new.to_csv("new.csv", index=False)
    monkeypatch.setattr(predict, "ROWS", 2)
    command("predict", "models/train", "new.csv", "-o", "out.parquet", monkeypatch=monkeypatch)
    out = pd.read_parquet("out.parquet")
    expected = load_bundle(Path("models/train")).predict(new)
    pd.testing.assert_frame_equal(out, expected, rtol=1e-5)
    assert list(out.columns) == ["prediction", "probability_apple", "probability_pear"]
    assert out["prediction"].tolist()[:4] == ["apple", "pear", "apple", "pear"]
    shown = capsys.readouterr().out
    assert "colour: 3 of 5 rows have a category unseen in training ('blue', 'pink')" in shown
    assert "predict 3/3" in shown
    command("predict", "models/train", "new.csv", "-o", "out.csv", monkeypatch=monkeypatch)
    pd.testing.assert_frame_equal(pd.read_csv("out.csv").round(4), expected.round(4), check_dtype=False, rtol=1e-3)


@pytest.mark.parametrize(
    ("table", "output", "says"),
    [
        ("weight\n1\n", "o.csv", "lacks the column 'colour'"),
        ("weight,colour\n1,red\nheavy,red\n", "o.csv", "new.csv, row 2: 'weight' must be a number, got 'heavy'"),
        ("weight,colour\n1,red\ninf,red\n", "o.csv", "new.csv, row 2: 'weight' must be finite, got 'inf'"),
        ("weight,colour\n1,red\n2\n", "o.csv", "new.csv, line 3: 1 cell, but the header has 2"),
        ("weight,colour\n1,red\n", "o.xlsx", "must end in .parquet or .csv"),
    ],
)
@pytest.mark.usefixtures("trained")
def test_a_table_that_does_not_fit_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: str, output: str, says: str
) -> None:
    Path("new.csv").write_text(table)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command("predict", "models/train", "new.csv", "-o", output, monkeypatch=monkeypatch)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not Path(output).exists()


def test_adopt_changes_the_searched_values_and_keeps_the_comments(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project({})
    path = folder / "params.yaml"
    path.write_text("# mine\n" + path.read_text())
    (folder / "best.yaml").write_text("train: {lr: 0.123}\nmodel: {hidden: [32]}\n")
    command("adopt", "best.yaml", monkeypatch=monkeypatch)
    assert path.read_text().startswith("# mine\n")
    assert config.load().train.lr == 0.123
    assert config.load().model.hidden == (32,)
    assert "train.lr: preset -> 0.123" in capsys.readouterr().out


def test_adopt_without_a_search_says_what_to_run(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project({})
    with pytest.raises(SystemExit):
        command("adopt", monkeypatch=monkeypatch)
    assert "run dvc repro search" in capsys.readouterr().err


@pytest.mark.usefixtures("finished")
def test_show_has_a_row_per_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command("show", monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    for word in ("train", "search", "finetune", "trees", "constant", "test.accuracy", "transfer.loss"):
        assert word in shown
