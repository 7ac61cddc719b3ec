"""Randomness is a function of its key, and a missing GPU is named."""

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.networks import device
from pipeline.networks.device import use


def test_generator_is_a_function_of_its_key():
    def draw(*key: int) -> list[int]:
        return torch.randint(2**40, (4,), generator=device.generator(*key)).tolist()

    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 2, 3), (3, 2, 1), (2**32 - 1, 10**6)]
    assert [draw(*key) for key in keys] == [draw(*key) for key in keys]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_generator_leaves_the_global_one_alone():
    before = torch.random.get_rng_state()
    torch.randperm(10, generator=device.generator(1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_use_names_the_missing_gpu_and_falls_back_to_the_processor():
    assert use("auto", 1) == use("cpu", 1) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    with pytest.raises(UserError, match="device is cuda, but torch finds no GPU"):
        use("cuda", 1)
