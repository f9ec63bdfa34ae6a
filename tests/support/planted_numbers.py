"""Tasks whose numbers are out of reach: of float16, or of as many parameters."""

from __future__ import annotations

from tests.support.planted import Planted

NUMBERS = {
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
}
