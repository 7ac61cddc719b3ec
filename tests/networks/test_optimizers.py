import pytest
import torch

from pipeline.networks.device import generator
from pipeline.networks.optimizers import Optimizer
from tests.support.samples import settings

REFERENCES = {
    "sgd": lambda p, s: torch.optim.SGD(p, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay),
    "adam": lambda p, s: torch.optim.Adam(p, lr=s.lr, weight_decay=s.weight_decay),
    "adamw": lambda p, s: torch.optim.AdamW(p, lr=s.lr, weight_decay=s.weight_decay),
}


@pytest.mark.parametrize("optimizer", REFERENCES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_network_moves_as_with_torch_optim_step_for_step(optimizer, weight_decay, momentum):
    asked = settings(optimizer=optimizer, lr=0.03, momentum=momentum, weight_decay=weight_decay)
    draws = generator(0)
    block = torch.randn(1, 50, generator=draws)
    reference = block.clone().requires_grad_()
    theirs = REFERENCES[optimizer]([reference], asked)
    ours = Optimizer([block], [asked], [{}], steps=0)
    for step in range(30):
        gradient = torch.randn(1, 50, generator=draws) * 10.0 ** (step % 5 - 2)
        reference.grad = gradient.clone()
        lr = 0.03 * (1 + step % 3)
        theirs.param_groups[0]["lr"] = lr
        theirs.step()
        ours.step([gradient], torch.tensor([[lr]]))
        torch.testing.assert_close(block, reference.detach(), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("optimizer", REFERENCES)
def test_networks_side_by_side_move_by_their_own_numbers_and_their_own_past(optimizer):
    asked = [
        settings(optimizer=optimizer, momentum=m, weight_decay=w) for m, w in ((0.0, 0.0), (0.9, 0.1), (0.5, 0.01))
    ]
    draws, lr = generator(0), torch.tensor([[0.1], [0.01], [0.05]], dtype=torch.float64)
    blocks = [torch.randn(3, n, generator=draws, dtype=torch.float64) for n in (7, 4)]
    gradients = [[torch.randn(3, n, generator=draws, dtype=torch.float64) for n in (7, 4)] for _ in range(6)]
    together = [block.clone() for block in blocks]
    stack = Optimizer(together, asked, [{}] * 3, steps=0)
    for step, each in enumerate(gradients):
        if step == 3:  # into another stack, with what it remembers
            stack = Optimizer(together, asked, stack.states(), steps=3)
        stack.step([gradient.clone() for gradient in each], lr)
    for k in range(3):
        alone = [block[k : k + 1].clone() for block in blocks]
        own = Optimizer(alone, asked[k : k + 1], [{}], steps=0)
        for each in gradients:
            own.step([gradient[k : k + 1].clone() for gradient in each], lr[k : k + 1])
        for mine, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(mine[0], theirs[k], rtol=1e-12, atol=1e-12)
