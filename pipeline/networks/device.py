"""The device, its threads, and random generators seeded by a key."""

import os

import numpy as np
import torch

from pipeline.core.errors import UserError


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by `key` alone, such as (seed, epoch)."""
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(seed)


def use(device: str, threads: int) -> torch.device:
    """Set the threads of torch and return the device; raises `UserError` for cuda without a GPU."""
    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch finds no GPU: set device to auto or cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")  # deterministic without further settings
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required for deterministic cuBLAS
    torch.use_deterministic_algorithms(True)
    # Filling memory only helps to find bugs, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda")
