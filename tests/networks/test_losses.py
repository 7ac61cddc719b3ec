import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from pipeline.core.settings import Task
from pipeline.evaluation import metrics
from pipeline.networks import losses
from pipeline.networks.device import generator
from tests.support.outputs import N, judged, task_of

PLAIN = pytest.mark.parametrize("smoothing", [0.0, 0.2])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])


@WEIGHTED
@PLAIN
@pytest.mark.parametrize("n_classes", [2, 4])
def test_classification_loss_is_the_weighted_mean_of_each_rows_smoothed_cross_entropy(n_classes, smoothing, weighted):
    outputs, y = judged(n_classes)
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0])[:n_classes] if weighted else None
    chances = losses.predictions(outputs.double(), task_of(n_classes)).numpy()
    goal = (1 - smoothing) * np.eye(n_classes)[y] + smoothing / n_classes
    each = -(goal * np.log(chances)).sum(1)
    expected = np.average(each, weights=weights[y].numpy() if weighted else None)
    assert float(losses.loss(outputs, y, task_of(n_classes), smoothing, weights)) == pytest.approx(expected, rel=1e-5)


@PLAIN
def test_loss_equals_that_of_torch(smoothing):
    outputs, y = judged(4)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(outputs, y)
    torch.testing.assert_close(losses.loss(outputs, y, "multiclass", smoothing), expected)
    logit, y = judged(2)
    both = torch.cat([torch.zeros_like(logit), logit], 1)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(both, y)
    torch.testing.assert_close(losses.loss(logit, y, "binary", smoothing), expected)


MEMBERS_OWN = torch.tensor([[0.0], [0.3], [0.1]], dtype=torch.float64)
CLASSIFIED = [
    (task, smoothing, weighted)
    for task in ("binary", "multiclass")
    for smoothing in (0.0, 0.2, MEMBERS_OWN)
    for weighted in (False, True)
]


@pytest.mark.parametrize(("task", "smoothing", "weighted"), [("regression", 0.0, False), *CLASSIFIED])
def test_the_gradient_of_the_loss_is_what_autograd_finds(task, smoothing, weighted):
    n_classes = {"regression": 1, "binary": 1, "multiclass": 4}[task]
    g = generator(1)
    outputs = torch.randn(3, N, n_classes, generator=g, dtype=torch.float64, requires_grad=True)
    y = (
        torch.randn(1, N, generator=g)
        if task == "regression"
        else torch.randint(max(2, n_classes), (3, N), generator=g)
    )
    terms = (outputs, y, task, smoothing, torch.tensor([0.5, 2.0, 1.0, 3.0]).double() if weighted else None)
    (expected,) = torch.autograd.grad(losses.loss(*terms).sum(), outputs)
    found = losses.loss_gradient(*terms).detach()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_weighted_loss_equals_that_of_torch(n_classes):
    outputs, y = judged(n_classes)
    both = outputs if n_classes > 2 else torch.cat([torch.zeros_like(outputs), outputs], 1)
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0])[:n_classes]
    expected = torch.nn.CrossEntropyLoss(weight=weights)(both, y)
    torch.testing.assert_close(losses.loss(outputs, y, task_of(n_classes), weights=weights), expected)


def test_regression_loss_is_the_mean_squared_error_and_one_for_the_mean_of_a_standardised_target():
    y = torch.randn(N, generator=generator(0), dtype=torch.float64)
    y = (y - y.mean()) / y.std(correction=0)
    assert float(losses.loss(torch.zeros(N, 1), y, "regression")) == pytest.approx(1)
    outputs = torch.randn(N, 1, generator=generator(1))
    expected = reference.mean_squared_error(y, outputs[:, 0])
    assert float(losses.loss(outputs, y, "regression")) == pytest.approx(expected)


def test_loss_of_extreme_outputs_is_finite():
    cases: list[tuple[torch.Tensor, torch.Tensor, Task]] = [
        (torch.tensor([[200.0], [-200.0]]), torch.tensor([0, 1]), "binary"),
        (torch.tensor([[200.0, -200, 0], [-200, 0, 200]]), torch.tensor([1, 0]), "multiclass"),
    ]
    for outputs, y, task in cases:
        assert 150 < float(losses.loss(outputs, y, task)) < 401


@pytest.mark.parametrize("n_classes", [2, 5])
def test_predictions_are_probabilities(n_classes):
    outputs, _ = judged(n_classes)
    chances = losses.predictions(outputs, task_of(n_classes))
    assert chances.shape == (N, n_classes)
    torch.testing.assert_close(chances.sum(1), torch.ones(N))
    logits = outputs if n_classes > 2 else torch.cat([torch.zeros_like(outputs), outputs], 1)
    torch.testing.assert_close(chances, logits.softmax(1))
    assert torch.equal(losses.predictions(outputs[:, :1], "regression"), outputs[:, 0])


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("members", [1, 5])
def test_joint_outputs_predict_the_mean_of_the_members_predictions(task, members):
    outputs = 3 * torch.randn(
        members, 40, 4 if task == "multiclass" else 1, generator=generator(1), dtype=torch.float64
    )
    each = torch.stack([losses.predictions(own, task) for own in outputs])
    torch.testing.assert_close(losses.predictions(losses.joint(outputs, task), task), each.mean(0))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_loss_of_a_stack_is_that_of_each_member_with_its_own_smoothing(task):
    draws = generator(2)
    outputs = torch.randn(3, 20, 4 if task == "multiclass" else 1, generator=draws)
    y = torch.randn(20, generator=draws) if task == "regression" else torch.randint(2, (20,), generator=draws)
    smoothing = [0.0, 0.1, 0.3] if task != "regression" else [0.0] * 3
    together = losses.loss(outputs, y, task, torch.tensor(smoothing).view(-1, 1))
    for k in range(3):
        torch.testing.assert_close(together[k], losses.loss(outputs[k], y, task, smoothing[k]))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_row_scores_average_to_the_headline_metric(task):
    draws = generator(3)
    outputs = torch.randn(50, 4 if task == "multiclass" else 1, generator=draws)
    y = torch.randn(50, generator=draws) if task == "regression" else torch.randint(2, (50,), generator=draws)
    mean = float(losses.row_scores(outputs, y, task).mean())
    scores = metrics.score(losses.predictions(outputs, task), y, task)
    assert (mean**0.5 if task == "regression" else mean) == pytest.approx(
        scores["rmse" if task == "regression" else "accuracy"]
    )
