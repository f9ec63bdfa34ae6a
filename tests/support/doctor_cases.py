"""Tasks of users: with a planted problem each, and healthy ones."""

from __future__ import annotations

from tests.support.planted_modules import MODULES
from tests.support.planted_numbers import NUMBERS
from tests.support.planted_samples import SAMPLES

PLANTED = MODULES | SAMPLES | NUMBERS
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
