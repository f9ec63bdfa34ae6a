"""Tasks whose samples are not apart: statistics of the batch, padding, an axis that is another."""

from __future__ import annotations

from tests.support.planted import Planted

SAMPLES = {
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
}
