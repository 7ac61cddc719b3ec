import pytest
import torch
from torch import nn

from pipeline.networks.device import generator
from pipeline.networks.modules import CategoryEmbedding, PiecewiseLinear, TableLinear


def test_piecewise_linear_is_the_formula_of_the_paper():
    edges = (torch.tensor([0.0, 1.0, 3.0]), torch.tensor([-1.0, 1.0]))
    x = torch.tensor([[-1.0, 0.0], [0.5, -1.0], [2.0, 1.0], [5.0, 3.0]])
    expected = torch.tensor([[-1.0, 0.0, 0.5], [0.5, 0.0, 0.0], [1.0, 0.5, 1.0], [1.0, 2.0, 2.0]])
    assert torch.equal(PiecewiseLinear(edges).encode(x), torch.cat([x, expected], 1))


def test_category_embedding_puts_each_categorys_vector_beside_the_numbers():
    layer = CategoryEmbedding((2, 3), 4)
    nn.init.normal_(layer.table, generator=generator(0))
    x, none = layer((torch.ones(2, 1), torch.tensor([[1, 0], [0, 2]])))
    assert torch.equal(x[0], torch.cat([torch.ones(1), layer.table[1], layer.table[2]]))
    assert torch.equal(x[1], torch.cat([torch.ones(1), layer.table[0], layer.table[4]]))
    assert none.shape == (2, 0)


SIZES = [(3, (4, 2, 5)), (3, ()), (0, (4, 2)), (1, (3,))]


def table_linear(d_num, cardinalities, d_out=6):
    layer = TableLinear(d_num, cardinalities, d_out)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator(1))
    return layer


@pytest.mark.parametrize(("d_num", "cardinalities"), SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_table_linear_and_its_gradients_equal_linear_on_the_one_hot_matrix(d_num, cardinalities, dtype):
    layer, g = table_linear(d_num, cardinalities), generator(2)
    x_num = torch.randn(17, d_num, generator=g)
    codes = [torch.randint(size, (17,), generator=g) for size in cardinalities]
    x_cat = torch.stack(codes, 1).to(dtype) if codes else torch.empty(17, 0, dtype=dtype)
    one_hot = [nn.functional.one_hot(code, size).float() for code, size in zip(codes, cardinalities, strict=True)]
    x = torch.cat([x_num, *one_hot], 1)
    plain = nn.Linear(x.shape[1], 6)
    plain.weight.data = torch.cat([layer.weight, layer.table.T], 1).detach()
    plain.bias.data = layer.bias.detach().clone()

    torch.testing.assert_close(layer((x_num, x_cat)), plain(x))
    weights = torch.randn(17, 6, generator=g)
    (layer((x_num, x_cat)) * weights).sum().backward()
    (plain(x) * weights).sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad[:, :d_num])
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)
    if cardinalities:
        torch.testing.assert_close(layer.table.grad, plain.weight.grad[:, d_num:].T)
