import pytest
import torch

from pipeline import metrics
from pipeline.calibration import fit_temperature
from pipeline.data import generator
from tests import samples


def drawn(task, temperature, n=20_000):
    """Labels that true probabilities give, and outputs that are `temperature` times too sure of themselves."""
    draws = generator(0)
    if task == "binary":
        logits = 2 * torch.randn(n, 1, generator=draws)
        y = (torch.rand(n, generator=draws) < logits.sigmoid()[:, 0]).long()
    else:
        logits = 2 * torch.randn(n, 4, generator=draws)
        y = torch.multinomial(logits.softmax(1), 1, generator=draws)[:, 0]
    return logits * temperature, y


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_made_outputs_too_sure_is_found(task, temperature):
    outputs, y = drawn(task, temperature)
    found = fit_temperature(outputs, y, task)
    assert found == pytest.approx(temperature, rel=0.05)
    before, after = (
        metrics.calibration_error(metrics.predictions(scaled, task), y) for scaled in (outputs, outputs / found)
    )
    assert after < 0.02
    assert after < before or temperature == 1.0


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_no_temperature_nearby_has_less_loss(task):
    outputs, y = drawn(task, 2.5, n=300)
    found = fit_temperature(outputs, y, task)
    losses = [float(metrics.loss(outputs.double() / (found * step), y, task)) for step in (0.97, 1.0, 1.03)]
    assert min(losses) == losses[1]


def test_a_regression_and_outputs_without_a_best_temperature_stay_in_bounds():
    assert fit_temperature(torch.randn(5, 1), torch.randn(5), "regression") == 1.0
    certain = torch.tensor([[9.0], [-9.0]])
    assert 0.05 <= fit_temperature(certain, torch.tensor([1, 0]), "binary") < 0.06
    assert 19 < fit_temperature(certain, torch.tensor([0, 1]), "binary") <= 20


@pytest.mark.parametrize("name", ["mixed", "wine", "diabetes"])
def test_a_calibrated_bundle_predicts_the_same_label_with_other_probabilities(name):
    of = samples.sample(name)
    bundle = samples.bundle(of, ensemble=2)
    calibrated = bundle.calibrated(of.val)
    before, after = bundle.predict(of.raw), calibrated.predict(of.raw)
    assert before["prediction"].equals(after["prediction"])
    loss = [metrics.loss(bundle.outputs(of.val) / t, of.val.y, of.target.task) for t in (1.0, calibrated.temperature)]
    assert loss[1] <= loss[0]
    if name != "diabetes":
        assert calibrated.temperature != 1.0
        assert not before.drop(columns="prediction").equals(after.drop(columns="prediction"))
