import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from pipeline.core.settings import Data
from pipeline.evaluation import metrics
from pipeline.networks import losses
from pipeline.stages.baseline.trees import Trees, constant_outputs
from pipeline.tables.schema import Target
from tests.support import samples


def fitted(of, seed=0):
    return Trees(of.features.iloc[of.rows["train"]], of.train.y.numpy(), of.schema, of.target, seed=seed, threads=1)


def judged(of, trees, split="test"):
    return losses.predictions(trees.outputs(of.features.iloc[of.rows[split]]), of.target.task)


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes"])
def test_trees_predict_like_scikit_learn_on_the_raw_numbers(name):
    of = samples.sample(name)
    x, y = of.raw.drop(columns="target").to_numpy(), of.raw["target"].to_numpy()
    train, test = of.rows["train"], of.rows["test"]
    outputs = fitted(of).outputs(of.features.iloc[test])
    if name == "diabetes":
        reference = HistGradientBoostingRegressor(random_state=0).fit(
            x[train], (y[train] - y[train].mean()) / y[train].std()
        )
        assert outputs[:, 0].numpy() == pytest.approx(reference.predict(x[test]), abs=1e-4)
    else:
        reference = HistGradientBoostingClassifier(random_state=0).fit(x[train], y[train])
        predicted = losses.predictions(outputs, of.target.task)
        assert predicted.numpy() == pytest.approx(reference.predict_proba(x[test]), abs=1e-5)


def test_trees_use_categories_and_missing_numbers_directly():
    of = samples.sample("mixed")
    x = of.raw.drop(columns="sold").astype({"colour": "category", "shop": "category"})
    train, test = of.rows["train"], of.rows["test"]
    reference = HistGradientBoostingClassifier(random_state=0, categorical_features="from_dtype")
    reference.fit(x.iloc[train], of.raw["sold"].iloc[train])
    assert judged(of, fitted(of)).numpy() == pytest.approx(reference.predict_proba(x.iloc[test]), abs=1e-5)


def test_trees_beat_the_constant_and_repeat():
    of = samples.sample("mixed")
    chances = judged(of, fitted(of))
    assert torch.equal(chances, judged(of, fitted(of)))
    constant = losses.predictions(constant_outputs(of.train.y, len(of.test), of.target), "binary")
    assert metrics.accuracy(chances.argmax(1), of.test.y) > metrics.accuracy(constant.argmax(1), of.test.y)


@pytest.mark.parametrize(("name", "n"), [("wine", 5), ("breast_cancer", 1), ("mixed", 7)])
def test_constant_outputs_give_each_row_the_class_shares(name, n):
    of = samples.sample(name)
    chances = losses.predictions(constant_outputs(of.train.y, n, of.target), of.target.task)
    shares = np.bincount(of.train.y) / len(of.train)
    assert chances.numpy() == pytest.approx(np.tile(shares, (n, 1)), abs=1e-6)


def test_constant_outputs_of_a_regression_are_the_mean():
    of = samples.sample("diabetes")
    outputs = constant_outputs(of.train.y, 4, of.target)
    assert outputs.shape == (4, 1)
    assert (outputs * of.target.std + of.target.mean).flatten().numpy() == pytest.approx(
        np.full(4, of.raw["target"].iloc[of.rows["train"]].mean()), rel=1e-5
    )


def test_an_absent_class_has_a_tiny_share_and_a_finite_loss():
    target = Target(name="y", task="multiclass", classes=("a", "b", "c"))
    outputs = constant_outputs(torch.tensor([0, 0, 1]), 2, target)
    assert losses.predictions(outputs, "multiclass")[0].numpy() == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-6)
    assert losses.loss(outputs, torch.tensor([2, 0]), "multiclass").isfinite()


def test_a_class_with_one_training_row_does_not_stop_the_trees():
    # More rows than scikit-learn's limit for early stopping, which holds out rows by class.
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=13_000), "y": rng.choice(["a", "b"], 13_000)})
    table.loc[0, "y"] = "rare"
    of = samples.make(table, Data(source="made up", target="y", task="multiclass"))
    assert np.bincount(of.train.y).tolist()[-1] == 1
    chances = judged(of, fitted(of))
    assert chances.shape == (len(of.test), 3)
    torch.testing.assert_close(chances.sum(1), torch.ones(len(of.test)))


@pytest.mark.parametrize("n_categories", [253, 254, 400])
def test_a_column_with_more_categories_than_scikit_learn_allows_is_used(n_categories):
    codes = np.arange(3 * n_categories) % n_categories
    table = pd.DataFrame({"code": [f"c{code:03}" for code in codes], "y": np.where(codes % 2, "odd", "even")})
    table["x"] = np.random.default_rng(0).normal(size=len(table))
    data = Data(source="made up", target="y", task="binary", max_categories=1000, kinds={"code": "categorical"})
    of = samples.make(table, data)
    assert of.schema.cardinalities[0] > 240
    chances = judged(of, fitted(of), "train")
    assert metrics.accuracy(chances.argmax(1), of.train.y) > 0.6
