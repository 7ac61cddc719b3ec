"""SGD, Adam and AdamW for a stack of K networks, each with its own learning rate, momentum and weight decay [K, 1].

Parameters, gradients and state are blocks [K, P]. For K = 1, steps equal those of `torch.optim` up to rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.core.settings import Train

State = dict[str, Tensor]  # the optimiser state of one network, by name, each [P]
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class Optimizer:
    """Update `blocks` in place, from the `states` after `steps` steps."""

    def __init__(
        self, blocks: Sequence[Tensor], settings: Sequence[Train], states: Sequence[State], steps: int
    ) -> None:
        self.blocks, self.kind, self.steps = blocks, settings[0].optimizer, steps
        self.momentum = _column([each.momentum for each in settings], blocks)
        self.weight_decay = _column([each.weight_decay for each in settings], blocks)
        self._decays = bool((self.weight_decay != 0).any())
        names = ("momentum",) if self.kind == "sgd" else ("mean", "square")
        self._memory = [
            {
                name: torch.stack([state[f"{name}.{k}"] if state else torch.zeros_like(block[0]) for state in states])
                for name in names
            }
            for k, block in enumerate(blocks)
        ]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        """Take one step with learning rates `lr` [K, 1]; overwrites the gradients."""
        self.steps += 1
        for block, gradient, memory in zip(self.blocks, gradients, self._memory, strict=True):
            if self.kind == "adamw":
                if self._decays:
                    block.mul_(1 - lr * self.weight_decay)  # Loshchilov & Hutter 2019, algorithm 2
            elif self._decays:
                gradient.addcmul_(block, self.weight_decay)
            if self.kind == "sgd":
                memory["momentum"].mul_(self.momentum).add_(gradient)
                block.addcmul_(memory["momentum"], lr, value=-1)
            else:
                self._adam(block, gradient, memory, lr)

    def _adam(self, block: Tensor, gradient: Tensor, memory: State, lr: Tensor) -> None:
        """Kingma & Ba 2015, algorithm 1."""
        memory["mean"].lerp_(gradient, 1 - BETA_1)
        memory["square"].mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
        correction = (1 - BETA_1**self.steps) / lr
        scale = memory["square"].sqrt().mul_(correction / (1 - BETA_2**self.steps) ** 0.5).add_(EPSILON * correction)
        block.addcdiv_(memory["mean"], scale, value=-1)

    def states(self) -> list[State]:
        """Return a copy of the state of each network."""
        return [
            {
                f"{name}.{block}": tensor[k].clone()
                for block, memory in enumerate(self._memory)
                for name, tensor in memory.items()
            }
            for k in range(len(self.blocks[0]))
        ]


def _column(values: Sequence[float], blocks: Sequence[Tensor]) -> Tensor:
    return torch.tensor(values, dtype=blocks[0].dtype, device=blocks[0].device).unsqueeze(1)
