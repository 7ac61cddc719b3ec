"""Made-up outputs of a network, with the targets they are scored against."""

import torch
from torch.nn import functional

from pipeline.networks.device import generator

N = 200


def judged(n_classes, seed=0, absent=()):
    """Outputs [N, n_outputs] that know a little of `y` [N]; some classes may be absent from `y`."""
    g = generator(seed)
    present = torch.tensor([k for k in range(n_classes) if k not in absent])
    y = present[torch.randint(len(present), (N,), generator=g)]
    logits = torch.randn(N, n_classes, generator=g) + 1.5 * functional.one_hot(y, n_classes)
    return (logits, y) if n_classes > 2 else (logits[:, 1:] - logits[:, :1], y)


def task_of(n_classes):
    return "binary" if n_classes == 2 else "multiclass"
