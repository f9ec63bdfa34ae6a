"""The models and batches that benchmarks run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """A model with one batch of random data, categorical.

    Attributes:
        name: as tables show it.
        build: returns the model; called under a fixed seed.
        draw: returns a batch of inputs from a generator.
        classes: number of classes.
        samples: N.
        products: single products and natural gradients are measured too, not scores alone.
        gram: so is the Gram matrix.
        formed: per-sample gradients fit into memory.
    """

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Tensor]
    classes: int
    samples: int
    products: bool = True
    gram: bool = False
    formed: bool = True

    def make(self, device: str = "cpu") -> tuple[nn.Module, Tensor, Tensor]:
        """Return model, inputs and targets on a device, the same each time."""
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build().eval()
        inputs = self.draw(self.samples, generator)
        targets = torch.randint(self.classes, (self.samples,), generator=generator)
        return model.to(device), inputs.to(device), targets.to(device)


def mlp() -> nn.Module:
    """Return the MLP 3072-2048-2048-10 of the paper (appendix H.7)."""
    return nn.Sequential(
        nn.Linear(3072, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)
    )


def cnn() -> nn.Module:
    """Return a small convolutional network with GroupNorm."""
    layers: list[nn.Module] = []
    for inside, outside, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)):
        layers += [
            nn.Conv2d(inside, outside, 3, stride, padding=1),
            nn.GroupNorm(8, outside),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class LowRank(nn.Module):
    """A frozen linear layer with a trainable low-rank addition (LoRA, rank 8)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 8, bias=False)
        self.up = nn.Linear(8, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both."""
        return self.base(x) + self.up(self.down(x))


class Block(nn.Module):
    """A transformer block with query and value projections of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return attention and a feed-forward layer, each added to its input."""
        h = self.first(x)
        parts = (
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(-2)
        x = x + self.out(attended)
        return x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))


class Transformer(nn.Module):
    """Six blocks over 32 tokens, mean pooled.

    Args:
        lora: train low-rank additions to query and value, and the head, alone.
    """

    def __init__(self, lora: bool) -> None:
        super().__init__()
        width = 128
        self.embed = nn.Embedding(1000, width)
        blocks = [Block(width, 4) for _ in range(6)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 10)
        if lora:
            self.embed.requires_grad_(False)
            self.blocks.requires_grad_(False)
            for block in blocks:
                block.add_module("query", LowRank(block.query))
                block.add_module("value", LowRank(block.value))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.blocks(self.embed(tokens)).mean(1))


class Prompted(nn.Module):
    """A frozen transformer with eight tokens before every sample's and a head that are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Transformer(lora=False).requires_grad_(False)
        self.base.head.requires_grad_(True)
        self.prompt = nn.Parameter(torch.randn(8, 128))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        prompts = self.prompt.expand(len(tokens), -1, -1)
        found = self.base.blocks(torch.cat([prompts, self.base.embed(tokens)], 1))
        return self.base.head(found.mean(1))


def narrow_mlp() -> nn.Module:
    """Return an MLP 784-512-512-10."""
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def _normal(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda samples, generator: torch.randn(samples, *shape, generator=generator)


def _tokens(length: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda samples, generator: torch.randint(1000, (samples, length), generator=generator)


PROBLEMS = (
    Problem("MLP 10.5M", mlp, _normal(3072), 10, 160),
    Problem("CNN, GroupNorm", cnn, _normal(3, 32, 32), 10, 64, gram=True),
    Problem("transformer, LoRA", lambda: Transformer(lora=True), _tokens(32), 10, 64),
    Problem("transformer, full", lambda: Transformer(lora=False), _tokens(32), 10, 64, gram=True),
    Problem("transformer, prompt", Prompted, _tokens(32), 10, 64, products=False, gram=True),
    Problem(
        "transformer, 64 tokens, N = 160",
        lambda: Transformer(lora=False),
        _tokens(64),
        10,
        160,
        products=False,
    ),
    Problem("MLP of width 512", narrow_mlp, _normal(784), 10, 160, products=False),
    Problem("MLP 10.5M, N = 1280", mlp, _normal(3072), 10, 1280, products=False, formed=False),
)
REHEARSED = Problem(
    "MLP, tiny",
    lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)),
    _normal(8),
    classes=3,
    samples=4,
)
"""For a rehearsal, whose figures mean nothing."""
