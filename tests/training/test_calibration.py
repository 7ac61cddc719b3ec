import numpy as np
import pytest
import torch

from pipeline.evaluation import metrics
from pipeline.networks import losses
from pipeline.networks.device import generator
from pipeline.training.calibration import calibrated, fit_temperature
from tests.support import samples

TASKS = pytest.mark.parametrize("task", ["binary", "multiclass"])


def drawn(task, temperature, n=20_000, sure=2.0, seed=0):
    """Labels that true probabilities give, and outputs that are `temperature` times too sure of themselves."""
    draws = generator(seed)
    if task == "binary":
        logits = sure * torch.randn(n, 1, generator=draws)
        y = (torch.rand(n, generator=draws) < logits.sigmoid()[:, 0]).long()
    else:
        logits = sure * torch.randn(n, 4, generator=draws)
        y = torch.multinomial(logits.softmax(1), 1, generator=draws)[:, 0]
    return logits * temperature, y


def loss(outputs, y, task, temperature=1.0):
    return float(losses.loss(outputs.double() / temperature, y, task))


@TASKS
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_made_outputs_too_sure_is_found(task, temperature):
    outputs, y = drawn(task, temperature)
    found = fit_temperature(outputs, y, task)
    assert found == pytest.approx(temperature, rel=0.05)
    before, after = (
        metrics.calibration_error(losses.predictions(scaled, task), y) for scaled in (outputs, outputs / found)
    )
    assert after < 0.02
    assert after < before or temperature == 1.0


@TASKS
@pytest.mark.parametrize("seed", range(5))
def test_with_thousands_of_rows_the_temperature_is_what_outputs_were_multiplied_by(task, seed):
    outputs, y = drawn(task, 3.0, n=5000, seed=seed)
    assert fit_temperature(outputs, y, task) == pytest.approx(3.0, rel=0.07)  # three standard deviations


@TASKS
@pytest.mark.parametrize("n", [1, 10, 300])
@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_the_temperature_is_the_most_probable_where_its_logarithm_is_normal_with_sd_one_half(task, n, temperature):
    outputs, y = drawn(task, temperature, n)
    logs = np.linspace(np.log(0.05), np.log(20), 6001)
    each = [n * loss(outputs, y, task, np.exp(log)) + log**2 / (2 * 0.5**2) for log in logs]
    assert fit_temperature(outputs, y, task) == pytest.approx(np.exp(logs[np.argmin(each)]), rel=2e-3)


@TASKS
@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("seed", range(5))
def test_a_few_rows_that_are_all_right_do_not_make_a_network_certain(task, n, seed):
    outputs, y = drawn(task, 1.0, sure=6.0, seed=seed)
    right = losses.row_scores(outputs, y, task).nonzero()[:n, 0]
    found = fit_temperature(outputs[right], y[right], task)
    assert 0.5 < found < 1.5
    new, labels = drawn(task, 1.0, sure=6.0, seed=9)
    held_out = [loss(new, labels, task, temperature) for temperature in (1.0, found, 0.05)]
    assert held_out[1] < 1.25 * held_out[0]
    assert held_out[2] > 5 * held_out[0]  # which those few rows alone would ask for


@pytest.mark.slow
@TASKS
@pytest.mark.parametrize("n", [10, 40, 160])
def test_over_networks_of_many_temperatures_the_loss_on_other_rows_falls_however_few_rows_there_were(task, n):
    before, after = [], []
    for seed, log in enumerate(np.random.default_rng(n).normal(0, 0.5, 200)):
        outputs, y = drawn(task, np.exp(log), n + 1000, seed=seed)
        found = fit_temperature(outputs[:n], y[:n], task)
        before.append(loss(outputs[n:], y[n:], task))
        after.append(loss(outputs[n:], y[n:], task, found))
    assert np.mean(after) < np.mean(before)


@TASKS
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_no_temperature_has_more_loss_on_its_own_rows_than_one_has(task, n):
    for seed in range(20):
        outputs, y = drawn(task, 1.0, n, sure=10 ** (seed % 5 - 2.0), seed=seed)
        for labels in (y, torch.randint(2 if task == "binary" else 4, (n,), generator=generator(seed, 1))):
            found = fit_temperature(outputs, labels, task)
            assert loss(outputs, labels, task, found) <= loss(outputs, labels, task) * (1 + 1e-7)


def test_a_regression_has_no_temperature_and_all_others_stay_in_bounds():
    assert fit_temperature(torch.randn(5, 1, generator=generator(0)), torch.randn(5), "regression") == 1.0
    certain = torch.tensor([[9.0], [-9.0]])
    right, wrong = torch.tensor([1, 0]), torch.tensor([0, 1])
    assert 0.9 < fit_temperature(certain, right, "binary") < 1
    assert 2 < fit_temperature(certain, wrong, "binary") < 5
    many = 5000
    assert 0.05 <= fit_temperature(certain.repeat(many, 1) / 1000, right.repeat(many), "binary") < 0.06
    assert 19 < fit_temperature(certain.repeat(many, 1), wrong.repeat(many), "binary") <= 20


@pytest.mark.parametrize("name", ["mixed", "wine", "diabetes"])
def test_a_calibrated_bundle_predicts_the_same_label_with_other_probabilities(name):
    of = samples.sample(name)
    bundle = samples.bundle(of, ensemble=2)
    scaled = calibrated(bundle, of.val)
    before, after = bundle.predict(of.raw), scaled.predict(of.raw)
    assert before["prediction"].equals(after["prediction"])
    loss = [losses.loss(bundle.outputs(of.val) / t, of.val.y, of.target.task) for t in (1.0, scaled.temperature)]
    assert loss[1] <= loss[0]
    if name != "diabetes":
        assert scaled.temperature != 1.0
        assert not before.drop(columns="prediction").equals(after.drop(columns="prediction"))
