import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sklearn import metrics as reference

from pipeline.core.files import write_json
from pipeline.core.scores import load_scores
from pipeline.evaluation import figures, metrics
from pipeline.evaluation import report as reports
from pipeline.evaluation.report import GRID, evaluate, report, save, summary
from pipeline.networks import losses
from pipeline.networks.device import generator
from pipeline.networks.stack import predict
from pipeline.tables.prepared import save_split
from pipeline.tables.schema import Schema, Target
from pipeline.tables.tensors import TabularData
from tests.support import samples

TASKS = pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes", "mixed"])
CLASSIFIED = pytest.mark.parametrize("name", ["wine", "breast_cancer", "mixed"])


def judged(name):
    """Return outputs, labels and target of a briefly trained network on its training rows, enough for curves."""
    of = samples.sample(name)
    built = samples.network(of, hidden=(4,))
    samples.train(built, of, samples.settings(epochs=2, lr=0.02))
    return predict([built], of.train)[0], of.train.y, of.target


def made_up(classes, n=300, seed=0, task="multiclass"):
    y = torch.randint(len(classes), (n,), generator=generator(seed))
    outputs = torch.randn(n, len(classes), generator=generator(seed, 1))
    return outputs + torch.nn.functional.one_hot(y, len(classes)), y, Target(name="y", task=task, classes=classes)


@TASKS
def test_scores_are_those_of_metrics(name):
    outputs, y, target = judged(name)
    predicted = losses.predictions(outputs, target.task)
    expected = metrics.score(predicted, y, target.task, target.std)
    expected["loss"] = float(losses.loss(outputs, y, target.task))
    if target.task != "regression":
        expected["ece"] = metrics.calibration_error(predicted, y)
    assert report(outputs, y, target).scores == expected


@CLASSIFIED
def test_confusion_counts_are_those_of_scikit_learn(name):
    outputs, y, target = judged(name)
    codes = losses.predictions(outputs, target.task).argmax(1)
    table = report(outputs, y, target).tables["confusion"]
    expected = reference.confusion_matrix(y, codes, labels=range(len(target.classes)))
    assert table["rows"].tolist() == expected.ravel().tolist()
    actual, guessed = zip(*((a, b) for a in target.classes for b in target.classes), strict=True)
    assert tuple(table["actual"]) == actual
    assert tuple(table["predicted"]) == guessed


@CLASSIFIED
def test_roc_curve_is_that_of_scikit_learn(name):
    outputs, y, target = judged(name)
    chances = losses.predictions(outputs, target.task)
    table = report(outputs, y, target).tables["roc"]
    assert table["fpr"].tolist() == pytest.approx(GRID)
    for code, label in enumerate(target.classes):
        fpr, tpr, _ = reference.roc_curve(y == code, chances[:, code], drop_intermediate=False)
        found = table[f"tpr.{label}"].to_numpy()
        # Where the curve is vertical at a grid point, rounding decides between its lower and upper end.
        assert (found >= np.interp(GRID - 1e-6, fpr, tpr) - 2e-5).all()
        assert (found <= np.interp(GRID + 1e-6, fpr, tpr) + 2e-5).all()
    assert table["tpr"].to_numpy() == pytest.approx(table.iloc[:, 2:].mean(axis=1).to_numpy(), abs=2e-6)


@CLASSIFIED
def test_precision_is_the_best_of_scikit_learn_at_each_recall_or_a_higher_one(name):
    outputs, y, target = judged(name)
    chances = losses.predictions(outputs, target.task)
    table = report(outputs, y, target).tables["pr"]
    for code, label in enumerate(target.classes):
        precision, recall, _ = reference.precision_recall_curve(y == code, chances[:, code])
        found = table[f"precision.{label}"].to_numpy()
        for goal, value in zip(GRID, found, strict=True):
            # Between two recalls, any value between their precisions is right; the last point is a convention.
            at_least = precision[:-1][recall[:-1] >= goal - 1e-6].max()
            below = recall[recall <= goal + 1e-6].max()
            at_most = precision[recall >= below - 1e-6].max()
            assert at_least - 1e-5 <= value <= at_most + 1e-5, (label, goal)


def test_curves_of_a_perfect_model_are_perfect():
    y = torch.arange(60) % 2
    outputs = (2.0 * y - 1).unsqueeze(1) * torch.linspace(1, 2, 60).unsqueeze(1)
    tables = report(outputs, y, Target(name="y", task="binary", classes=("no", "yes"))).tables
    assert (tables["roc"].iloc[:, 1:] == 1).all(axis=None)
    assert (tables["pr"].iloc[:, 1:] == 1).all(axis=None)


def test_precision_of_constant_outputs_is_the_share_of_the_class_at_full_recall():
    y = torch.tensor([0, 0, 0, 1])
    table = report(torch.zeros(4, 1), y, Target(name="y", task="binary", classes=("no", "yes"))).tables["pr"]
    assert table["precision.yes"].iloc[-1] == 0.25
    assert table["precision.no"].iloc[-1] == 0.75


def test_a_class_without_test_rows_has_no_curve():
    outputs, y, target = made_up(("a", "b", "c", "d"))
    tables = report(outputs[y != 2], y[y != 2], target).tables
    assert list(tables["roc"].columns) == ["fpr", "tpr", "tpr.a", "tpr.b", "tpr.d"]
    assert list(tables["pr"].columns) == ["recall", "precision", "precision.a", "precision.b", "precision.d"]


def test_calibration_bins_hold_mean_confidence_accuracy_and_rows():
    chances = torch.tensor([[0.0, 1.0]] * 2 + [[0.02, 0.98]] * 3 + [[0.71, 0.29]] * 4)
    y = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1])
    outputs = torch.logit(chances[:, 1:], eps=1e-9).clamp(-60, 60)
    table = report(outputs, y, Target(name="y", task="binary", classes=("no", "yes"))).tables["calibration"]
    expected = pd.DataFrame({"confidence": [0.71, (2 * 1 + 3 * 0.98) / 5], "accuracy": [0.75, 0.6], "rows": [4, 5]})
    pd.testing.assert_frame_equal(table, expected, atol=2e-6)


@CLASSIFIED
def test_the_calibration_table_gives_the_calibration_error(name):
    outputs, y, target = judged(name)
    found = report(outputs * 30, y, target)  # some confidences become 1
    table = found.tables["calibration"]
    assert table["rows"].sum() == len(y)
    gaps = (table["confidence"] - table["accuracy"]).abs()
    assert found.scores["ece"] == pytest.approx((gaps * table["rows"]).sum() / len(y), abs=1e-5)


def test_residuals_are_in_units_of_the_target():
    outputs, y, target = judged("diabetes")
    of = samples.sample("diabetes")
    found = report(outputs, y, target)
    table = found.tables["residuals"]
    actual = of.raw["target"].iloc[of.rows["train"]].to_numpy()
    guess = outputs[:, 0].double().numpy() * target.std + target.mean
    assert table["actual"].to_numpy() == pytest.approx(actual, rel=1e-6)
    assert table["predicted"].to_numpy() == pytest.approx(guess, rel=1e-6)
    assert table["residual"].to_numpy() == pytest.approx(actual - guess, abs=1e-4)
    assert found.scores["rmse"] == pytest.approx(reference.root_mean_squared_error(actual, guess), rel=1e-5)


def test_the_rows_of_a_long_table_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(reports, "MAX_POINTS", 11)
    outputs, y, target = made_up(("a", "b", "c"), n=101)
    table = report(outputs, y, target).tables["predictions"]
    assert table["actual"].tolist() == target.labels(y[::10].numpy()).tolist()
    assert table["predicted"].tolist() == target.labels(outputs.argmax(1)[::10].numpy()).tolist()


# ------------------------------------------------------------------------------------------------- domains and files


def stored(folder, of, domains):
    for domain in domains:
        for split in ("train", "val", "test"):
            data = of.splits[split] if domain == "source" else of.splits[split].take(torch.arange(10))
            save_split(folder / "data/prepared" / domain, split, data, np.arange(len(data)))
    learned = of.schema.model_copy(update={"transfer_target": of.target})
    write_json(folder / "data/prepared/schema.json", learned.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("transfer", "asked", "prefixes"),
    [
        (None, "source", {"val.", "test."}),
        ("same", "source", {"val.", "test.", "transfer.", "transfer.val."}),
        ("other", "source", {"val.", "test."}),
        ("other", "transfer", {"transfer.", "transfer.val."}),
    ],
)
def test_a_model_is_scored_in_the_domains_that_have_its_target(tmp_path, monkeypatch, transfer, asked, prefixes):
    of = samples.sample("iris")
    monkeypatch.chdir(tmp_path)
    stored(tmp_path, of, ["source", *(["transfer"] if transfer else [])])
    other = Target(name="target", task="multiclass", classes=("x", "y", "z"))
    goal = {None: None, "same": of.target, "other": other}[transfer]
    learned = Schema(columns=of.schema.columns, target=of.target, transfer_target=goal)
    network = samples.network(of)

    def outputs(domain, split):
        assert split in ("val", "test")
        data = of.splits[split]
        return predict([network], data if domain == "source" else data.take(torch.arange(10)))[0]

    found = evaluate(outputs, learned.target if asked == "source" else other, learned)
    names = {"loss", "accuracy", "f1", "auroc", "ece"}
    assert set(found.scores) == {prefix + name for prefix in prefixes for name in names}
    if "test." in prefixes:
        test = report(outputs("source", "test"), of.test.y, of.target)
        assert {name: found.scores[f"test.{name}"] for name in test.scores} == test.scores
        pd.testing.assert_frame_equal(found.tables["confusion"], test.tables["confusion"])
        assert found.scores["val.loss"] == report(outputs("source", "val"), of.val.y, of.target).scores["loss"]
    if "transfer." in prefixes:
        rows = TabularData(of.test.x_num[:10], of.test.x_cat[:10], of.test.y[:10])
        expected = report(predict([network], rows)[0], rows.y, of.target).scores
        assert {name: found.scores[f"transfer.{name}"] for name in names} == expected
        assert found.tables["transfer_confusion"]["rows"].sum() == 10
    line = summary("train", found.scores)
    assert line.startswith("train: ")
    assert "val." not in line


@TASKS
def test_save_writes_flat_numbers_tables_and_plots_and_repeats_byte_for_byte(tmp_path, name):
    found = report(*judged(name))
    for folder in ("one", "two"):
        save(tmp_path / folder, found)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    plotted = [table for table in found.tables if table != "predictions"]
    assert files == sorted(
        ["metrics.json", *(f"{table}.csv" for table in found.tables), *(f"{table}.png" for table in plotted)]
    )
    for file in files:
        content = (tmp_path / "one" / file).read_bytes()
        assert content == (tmp_path / "two" / file).read_bytes()
        assert not file.endswith(".png") or content.startswith(b"\x89PNG")
    flat = json.loads((tmp_path / "one/metrics.json").read_text())
    assert flat == pytest.approx(found.scores, rel=1e-6)
    assert load_scores(tmp_path / "one") == flat
    for table, expected in found.tables.items():
        assert pd.read_csv(tmp_path / "one" / f"{table}.csv").shape == expected.shape


@pytest.mark.parametrize(
    "classes",
    [
        ("$x$", "a$", "$$", r"\$y"),
        ("<b>bold</b>", "a & b", r"back\slash{x}", "_hidden"),
        ("日本", "😀", "naïve", "Ω"),
        ("long " * 60, "w" * 500, "short"),
        ("two\nlines", "tab\there", ""),
        tuple(range(30)),
        tuple(f"class {'x' * k}" for k in range(12)),
    ],
    ids=["dollars", "markup", "unicode", "long", "lines", "many", "growing"],
)
def test_any_label_is_drawn_without_an_error_or_a_warning(tmp_path, classes):
    found = report(*made_up(classes))
    save(tmp_path, found)
    assert {path.name for path in tmp_path.glob("*.png")} == {"confusion.png", "roc.png", "pr.png", "calibration.png"}


def test_the_legend_of_the_curves_names_each_class():
    tables = report(*made_up(("_low", "mid", "$high$"))).tables
    axes = Figure().add_subplot()
    figures.curves(axes, tables["roc"], title="", xlabel="", ylabel="")
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()][:2] == ["_low", "mid"]
    assert len(axes.get_legend().get_texts()) == 4


def test_the_calibration_plot_names_its_lines():
    axes = Figure().add_subplot()
    figures.calibration(axes, pd.DataFrame({"confidence": [0.6, 0.9], "accuracy": [0.5, 1.0], "rows": [2, 3]}))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["perfectly calibrated", "model"]


def test_a_table_of_one_row_and_one_class_is_drawn(tmp_path):
    found = report(torch.zeros(1, 1), torch.tensor([1]), Target(name="y", task="binary", classes=("no", "yes")))
    save(tmp_path, found)
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"loss", "accuracy", "f1", "ece"}


def test_a_report_has_the_calibration_error_with_and_without_the_temperature():
    outputs, y, target = judged("wine")
    with_it, without = report(outputs, y, target, 0.2).scores, report(outputs, y, target).scores
    assert with_it["ece_uncalibrated"] == without["ece"] != with_it["ece"]
    assert "ece_uncalibrated" not in without
    assert with_it["accuracy"] == without["accuracy"]
    assert with_it == {**report(outputs / 0.2, y, target).scores, "ece_uncalibrated": without["ece"]}
