"""Vectors from a seed, and how they compare."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_vector(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.double(), b.double(), dim=0, eps=0.0))


def random_vectors(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)
