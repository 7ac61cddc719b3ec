"""SGD, Adam and AdamW for a stack of K networks, each with its own learning rate, momentum and weight decay [K, 1].

Parameters, gradients and state are blocks [K, P]. For K = 1, steps equal those of `torch.optim` up to rounding.
"""

from collections.abc import Sequence
from functools import partial

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
        column = partial(torch.tensor, dtype=blocks[0].dtype, device=blocks[0].device)
        self.blocks, self.kind, self.steps = blocks, settings[0].optimizer, steps
        self.momentum = column([each.momentum for each in settings]).unsqueeze(1)
        self.weight_decay = column([each.weight_decay for each in settings]).unsqueeze(1)
        self._decays = bool((self.weight_decay != 0).any())
        names = ("momentum",) if self.kind == "sgd" else ("mean", "square")
        slots = {f"{name}.{place}": block[0] for place, block in enumerate(blocks) for name in names}
        self._memory = {
            slot: torch.stack([state[slot] if state else torch.zeros_like(like) for state in states])
            for slot, like in slots.items()
        }

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        """Take one step with learning rates `lr` [K, 1]; overwrites the gradients."""
        self.steps += 1
        for place, (block, gradient) in enumerate(zip(self.blocks, gradients, strict=True)):
            if self._decays and self.kind == "adamw":
                block.mul_(1 - lr * self.weight_decay)  # Loshchilov & Hutter 2019, algorithm 2
            elif self._decays:
                gradient.addcmul_(block, self.weight_decay)
            if self.kind == "sgd":
                momentum = self._memory[f"momentum.{place}"].mul_(self.momentum).add_(gradient)
                block.addcmul_(momentum, lr, value=-1)
            else:  # Kingma & Ba 2015, algorithm 1
                mean = self._memory[f"mean.{place}"].lerp_(gradient, 1 - BETA_1)
                square = self._memory[f"square.{place}"].mul_(BETA_2)
                square.addcmul_(gradient, gradient, value=1 - BETA_2)
                correction = (1 - BETA_1**self.steps) / lr
                scale = square.sqrt().mul_(correction / (1 - BETA_2**self.steps) ** 0.5).add_(EPSILON * correction)
                block.addcdiv_(mean, scale, value=-1)

    def states(self) -> list[State]:
        """Return a copy of the state of each network."""
        n_networks = len(self.blocks[0])
        return [{name: tensor[k].clone() for name, tensor in self._memory.items()} for k in range(n_networks)]
