"""Tasks whose model is wrong by itself: what it draws, what it lacks, what nothing trains."""

from __future__ import annotations

from tests.support.planted import Planted

MODULES = {
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
