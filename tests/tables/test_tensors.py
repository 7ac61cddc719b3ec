import torch

from pipeline.tables.tensors import TabularData


def test_taken_rows_and_length():
    whole = TabularData(torch.arange(6.0).reshape(3, 2), torch.arange(3).reshape(3, 1), torch.tensor([5, 6, 7]))
    part = whole.take(torch.tensor([2, 0]))
    assert len(whole) == 3
    assert (part.x_num.tolist(), part.x_cat.tolist(), part.y.tolist()) == ([[4, 5], [0, 1]], [[2], [0]], [7, 5])
