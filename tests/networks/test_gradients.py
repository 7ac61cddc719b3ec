import pytest
import torch
from torch import nn

from pipeline.networks.device import generator
from pipeline.networks.gradients import look_up_gradient


@pytest.mark.parametrize(("n_rows", "n_codes", "width"), [(6, 40, 3), (1, 5, 1), (50, 8, 9)])
def test_the_gradient_of_a_look_up_is_that_of_embedding_bag(n_rows, n_codes, width):
    table = torch.randn(n_rows, 4, dtype=torch.float64, generator=generator(1), requires_grad=True)
    codes = torch.randint(n_rows, (n_codes, width), generator=generator(2))
    weights = torch.randn(n_codes, 4, dtype=torch.float64, generator=generator(3))
    looked_up = nn.functional.embedding_bag(codes, table, mode="sum")
    (expected,) = torch.autograd.grad((looked_up * weights).sum(), table)
    torch.testing.assert_close(look_up_gradient(codes, weights, table.detach().unsqueeze(0))[0], expected)
