"""Tasks with a planted problem each, and healthy ones, as files of a user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

import evalkit

N, D, C = 24, 6, 3
G = torch.Generator().manual_seed(0)


def data():
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    return x, x[:, :C].argmax(1)


def sequences():
    x = torch.randn(N, 5, D, generator=torch.Generator().manual_seed(1))
    return x, x.mean(1)[:, :C].argmax(1)


def mlp(*layers):
    return nn.Sequential(nn.Linear(D, 16), *layers, nn.Tanh(), nn.Linear(16, C))

"""
_TAIL = """

task = evalkit.Task(model=model, data=data, likelihood="categorical")
"""


@dataclass(frozen=True)
class Planted:
    """A task with one problem.

    Attributes:
        code: of the file, behind what all have.
        status: the exit status.
        check: the name of the finding.
        said: words of what is found.
        cure: words of what to do.
    """

    code: str
    status: int
    check: str
    said: tuple[str, ...]
    cure: tuple[str, ...]

    def written(self, folder: Path) -> str:
        """Write the file and return the specification of its task."""
        return written(folder, self.code)


def written(folder: Path, code: str) -> str:
    """Write the file of a task and return its specification."""
    file = folder / "mine.py"
    tail = "" if "\ntask = " in code else _TAIL
    file.write_text(_HEAD + code + tail, encoding="utf-8")
    return f"{file}:task"


PLANTED = {
    "dropout left on": Planted(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, 16)
        self.out = nn.Linear(16, C)

    def forward(self, x):
        return self.out(F.dropout(torch.tanh(self.inner(x)), 0.3))

model = Net
""",
        2,
        "determinism",
        ("random numbers drawn in the model itself (Net)", "eval mode"),
        ("training=self.training",),
    ),
    "dropout that stays in train mode": Planted(
        """
class Always(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)

def model():
    return mlp(Always(0.5))
""",
        2,
        "determinism",
        ("module '1' (Always)", "train mode"),
        ("eval()",),
    ),
    "batch statistics": Planted(
        """
def model():
    return mlp(nn.BatchNorm1d(16, track_running_stats=False))
""",
        2,
        "forward",
        ("batch statistics in module '1' (BatchNorm1d without running statistics)",),
        ("track_running_stats", "GroupNorm"),
    ),
    "batch statistics by hand": Planted(
        """
class Standard(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)) / (x.std(0) + 1e-6)

def model():
    return mlp(Standard())
""",
        1,
        "companions",
        ("other logits alone than in the batch", "module '1' (Standard)"),
        ("GroupNorm or LayerNorm",),
    ),
    "a once-differentiable layer": Planted(
        """
class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x ** 3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x ** 2 * g

class Cube(nn.Module):
    def forward(self, x):
        return x + Once.apply(x)

def model():
    return mlp(Cube())
""",
        2,
        "products",
        ("module '1' (Cube)", "by Once"),
        ("no once_differentiable",),
    ),
    "padding seen by the model": Planted(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.out = nn.Linear(8, C)

    def forward(self, input_ids, attention_mask):
        return self.out(torch.tanh(self.table(input_ids)).mean(1))

model = Net

def data():
    lengths = torch.arange(N) % 5 + 3
    kept = torch.arange(7) < lengths[:, None]
    ids = torch.randint(1, 20, (N, 7), generator=torch.Generator().manual_seed(1)) * kept
    return {"input_ids": ids, "attention_mask": kept.long()}, ids[:, 0] % C
""",
        1,
        "padding",
        ("the model sees padding", "padded to 7"),
        ("'attention_mask'", "pooling"),
    ),
    "padding without a mask": Planted(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=0)
        self.out = nn.Linear(8, C)

    def forward(self, ids):
        return self.out(self.table(ids).mean(1))

model = Net

def data():
    lengths = torch.arange(N) % 5 + 3
    kept = torch.arange(7) < lengths[:, None]
    ids = torch.randint(1, 20, (N, 7), generator=torch.Generator().manual_seed(1)) * kept
    return ids, ids[:, 0] % C
""",
        1,
        "padding",
        ("the model sees padding", "cut off"),
        ("a mask of what is padding",),
    ),
    "sequence-first layer": Planted(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(D, 8)
        self.out = nn.Linear(8, C)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])

model, data = Net, sequences
""",
        1,
        "companions",
        ("module 'rnn' (GRU)",),
        ("batch_first=True",),
    ),
    "sequence-first attention": Planted(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(D, 2, 12, dropout=0.0)
        self.out = nn.Linear(D, C)

    def forward(self, x):
        return self.out(self.encoder(x).mean(1))

model, data = Net, sequences
""",
        1,
        "companions",
        ("module 'encoder.self_attn' (MultiheadAttention)",),
        ("batch_first=True",),
    ),
    "sequence-first logits": Planted(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(D, 8)
        self.out = nn.Linear(8, C)

    def forward(self, x):
        return self.out(self.rnn(x.transpose(0, 1))[0])

model = Net

def data():
    x, y = sequences()
    return x, y[:, None].expand(N, 5).clone()
""",
        2,
        "forward",
        ("without the samples on axis 0",),
        ("logits.transpose(0, 1)", "batch_first=True"),
    ),
    "float16 overflow in the model": Planted(
        """
def model():
    net = mlp()
    with torch.no_grad():
        net[0].weight.mul_(3e5)
    return net.half()

def data():
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    return x, x[:, :C].argmax(1)
""",
        2,
        "values",
        ("parameter '0.weight'", "infinite"),
        ("float16 ends at 65504",),
    ),
    "float16 overflow on the way": Planted(
        """
def model():
    net = mlp()
    with torch.no_grad():
        net[0].weight.mul_(1e5)
        net[2].weight.mul_(1e-1)
    return net.half()
""",
        1,
        "values",
        ("module '0' (Linear)", "float16", "overflows at 65504"),
        ("bfloat16 or float32",),
    ),
    "float16 overflow by a cast": Planted(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return self.inner(x * 1e6).half().float()

def model():
    return Net()
""",
        1,
        "values",
        ("module 'inner.0' (Linear)", "overflows at 65504"),
        ("bfloat16 or float32",),
    ),
    "float16 overflow in the data": Planted(
        """
model = mlp

def data():
    x = 1e5 * torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    return x.half(), x[:, :C].argmax(1)
""",
        2,
        "values",
        ("inputs are infinite or NaN", "float16 ends at 65504"),
        ("keep the data in float32",),
    ),
    "unreachable floor": Planted(
        """
def model():
    return nn.Linear(2, C)

def data():
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(N) % C
""",
        1,
        "floor",
        ("16 free outputs", "9 parameters", "efficiencies stay below 100%"),
        ("--batch-size to 4 or less",),
    ),
    "frozen everything": Planted(
        """
def model():
    return mlp().requires_grad_(False)
""",
        2,
        "forward",
        ("expected a model with trainable parameters, found none in Sequential",),
        ("set requires_grad on the parameters",),
    ),
    "a parameter that nothing uses": Planted(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()
        self.forgotten = nn.Linear(4, 2)

    def forward(self, x):
        return self.inner(x)

model = Net
""",
        1,
        "parameters",
        ("2 trained parameters that no logit depends on (forgotten.weight, forgotten.bias)",),
        ("requires_grad_(False)", "remove them"),
    ),
}
"""By name; too little memory is planted on the machine, not in a file."""

HEALTHY = {
    "perceptron": "model = mlp\n",
    "convolutions with normalisation": """
def model():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.GroupNorm(2, 6),
        nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, C),
    )

def data():
    x = torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(N) % C
""",
    "recurrence over padded rows": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=0)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, C)

    def forward(self, ids):
        states = self.rnn(self.table(ids))[0]
        last = (ids != 0).sum(1) - 1
        return self.out(states[torch.arange(len(ids)), last])

model = Net

def data():
    lengths = torch.arange(N) % 5 + 3
    kept = torch.arange(7) < lengths[:, None]
    ids = torch.randint(1, 20, (N, 7), generator=torch.Generator().manual_seed(1)) * kept
    return ids, ids[:, 0] % C
""",
    "sequence-first inside": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(D, 8)
        self.out = nn.Linear(8, C)

    def forward(self, x):
        return self.out(self.rnn(x.transpose(0, 1))[0][-1])

model, data = Net, sequences
""",
}
"""Tasks of which nothing should be said."""
