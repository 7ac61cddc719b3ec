import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from pipeline.evaluation import metrics
from pipeline.networks import losses
from pipeline.networks.device import generator
from tests.support.outputs import N, judged, task_of


@pytest.mark.parametrize(("n_classes", "absent"), [(2, ()), (3, ()), (5, (1,)), (4, (0, 3))])
@pytest.mark.parametrize("seed", [0, 1])
def test_classification_scores_equal_those_of_scikit_learn(n_classes, absent, seed):
    outputs, y = judged(n_classes, seed, absent)
    chances = losses.predictions(outputs, task_of(n_classes))
    codes, scores = chances.argmax(1), metrics.score(chances, y, task_of(n_classes))
    areas = [reference.roc_auc_score(y == k, chances[:, k]) for k in range(n_classes) if k not in absent]
    assert scores == pytest.approx(
        {
            "accuracy": reference.accuracy_score(y, codes),
            "f1": reference.f1_score(y, codes, average="macro"),
            "auroc": reference.roc_auc_score(y, chances[:, 1]) if n_classes == 2 else np.mean(areas),
        },
        rel=1e-5,
    )
    assert metrics.accuracy(codes, y) == pytest.approx(reference.accuracy_score(y, codes))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_auroc_is_left_out_where_one_class_has_every_row(n_classes):
    chances = losses.predictions(judged(n_classes)[0], task_of(n_classes))
    scores = metrics.score(chances, torch.ones(N, dtype=torch.int64), task_of(n_classes))
    assert set(scores) == {"accuracy", "f1"}
    assert scores["accuracy"] == pytest.approx(float((chances.argmax(1) == 1).float().mean()))


@pytest.mark.parametrize("scale", [1.0, 77.5])
def test_regression_scores_equal_those_of_scikit_learn_in_units_of_the_target(scale):
    y = torch.randn(N, generator=generator(0))
    guess = y + 0.5 * torch.randn(N, generator=generator(1))
    own, own_guess = scale * y.double().numpy() + 150, scale * guess.double().numpy() + 150
    expected = {
        "rmse": reference.root_mean_squared_error(own, own_guess),
        "mae": reference.mean_absolute_error(own, own_guess),
        "r2": reference.r2_score(own, own_guess),
    }
    assert metrics.score(guess, y, "regression", scale) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("y", [torch.tensor([1.5]), torch.tensor([2.0, 2.0, 2.0])])
def test_r2_is_left_out_where_all_targets_are_equal(y):
    assert metrics.score(y + 1, y, "regression") == pytest.approx({"rmse": 1, "mae": 1})


def guo(confidence, right, n_bins=15):
    """Expected calibration error as Guo et al. 2017 define it, bin by bin; the last bin holds confidence 1."""
    total = 0.0
    for k in range(n_bins):
        inside = (confidence >= k / n_bins) & ((confidence < (k + 1) / n_bins) | (k == n_bins - 1))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("n_classes", [2, 5])
def test_calibration_error_is_that_of_guo(n_classes):
    outputs, y = judged(n_classes)
    chances = losses.predictions(outputs, task_of(n_classes))
    confidence, codes = chances.double().max(1)
    expected = guo(confidence.numpy(), (codes == y).numpy())
    assert expected > 0.01
    assert metrics.calibration_error(chances, y) == pytest.approx(expected, rel=1e-4)


def test_calibration_error_of_hand_made_bins_where_some_are_fully_sure():
    chances = torch.tensor([[0.02, 0.98]] * 3 + [[0.0, 1.0]] * 2 + [[0.7, 0.3]] * 4)
    y = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 1])
    # Bin of 0.98 and 1: 4 of 5 right, mean confidence 0.988. Bin of 0.7: 3 of 4 right.
    expected = 5 / 9 * abs(4 / 5 - 0.988) + 4 / 9 * abs(3 / 4 - 0.7)
    assert metrics.calibration_error(chances, y) == pytest.approx(expected, rel=1e-4)
