"""Random draws of an epoch: row order, dropout, augmentation."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.networks.device import generator


class Draws:
    """The random draws of one epoch, for each distinct seed; members of one seed share them."""

    def __init__(self, seeds: Sequence[int], epoch: int, device: torch.device) -> None:
        own = list(seeds) if len(set(seeds)) > 1 else [seeds[0]]
        self.keys = [(seed, epoch) for seed in own]
        self.device = device
        self._generators = [generator(*key, 1, device=device) for key in self.keys]
        # Separate, since a member without dropout draws no bits.
        self.dropout = [generator(*key, 2, device=device) for key in self.keys]

    def order(self, n: int) -> Tensor:
        """Return [keys, n] row indices in random order."""
        return torch.stack([torch.randperm(n, generator=generator(*key)) for key in self.keys]).to(self.device)

    def permutation(self, n: int) -> Tensor:
        return self._each(lambda draws: torch.randperm(n, generator=draws, device=self.device))

    def normal(self, like: Tensor) -> Tensor:
        return self._each(lambda draws: torch.empty_like(like[0]).normal_(generator=draws))

    def integers(self, high: int, like: Tensor) -> Tensor:
        return self._each(lambda draws: torch.randint(high, like.shape[1:], generator=draws, device=self.device))

    def bernoulli(self, probability: float, like: Tensor) -> Tensor:
        kept = torch.empty(like.shape[1:], device=self.device)
        return self._each(lambda draws: kept.bernoulli_(probability, generator=draws).bool())

    def _each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(draws) for draws in self._generators])


def mixup_shares(alpha: float, steps: int, keys: Sequence[tuple[int, int]]) -> np.ndarray:
    """Draw [steps, keys] from Beta(alpha, alpha): the weight of each row against its mixup partner; 1 for alpha 0."""
    own = [np.random.default_rng((*key, 2)).beta(alpha, alpha, steps) if alpha else np.ones(steps) for key in keys]
    return np.stack(own, 1)


def swapped(x: Tensor, probability: float, draws: Draws) -> Tensor:
    """Replace each value, with `probability`, by the value of the same column in a random row."""
    from_rows = draws.integers(x.shape[1], x)
    return torch.where(draws.bernoulli(probability, x), x.gather(1, from_rows), x)
