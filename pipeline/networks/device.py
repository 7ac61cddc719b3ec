"""The device, its threads, and random numbers that are a function of a key."""

import os

import numpy as np
import torch

from pipeline.core.errors import UserError


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers that are a function of `key` alone, such as (seed, epoch)."""
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(seed)


def use(device: str, threads: int) -> torch.device:
    """Set the threads of torch; the device that `device` names. Raises `UserError` for cuda where there is none."""
    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch finds no GPU here: set device to auto or cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")  # where the operations used here are deterministic as they are
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(True)
    # A check for bugs that would cost time at every dropout.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda")
