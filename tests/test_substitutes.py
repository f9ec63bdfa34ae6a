"""Operators that torch differentiates once: scored as what they compute, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import evalkit
from tests.support import dense
from tests.support.agreement import agrees, agrees_with_dense
from tests.support.table import Batch, Draw, Net, initialise

METHODS = ("sgd", "ief", "ngd:solver=direct", "scaled_by_size")
DAMPING = 1e-3
TOKENS = Draw(1).normal(6, 4, 8)
LABELS = Draw(2).integers(3, 6)


@pytest.fixture(autouse=True)
def scaled_by_size() -> None:
    """A method of a user's own, which takes the gradient itself."""
    evalkit.method("scaled_by_size")(
        lambda lin, damping: lin.gradient / (lin.gradient.abs() + damping)
    )


def scored_alike(
    model: nn.Module,
    plain: nn.Module,
    x: Tensor,
    ways: Sequence[tuple[str | None, int | None]] = ((None, None), ("float64", 3)),
    methods: Sequence[str] = METHODS,
) -> None:
    """Scores are those of a plain model in float64, for each precision and micro-batch size."""
    initialise(plain, Draw(3))
    model.load_state_dict(plain.state_dict())
    model.float()
    plain.double()
    exact = x.double() if x.is_floating_point() else x
    expected = evalkit.score(plain, exact, LABELS, methods=methods, damping=DAMPING).gamma
    x = exact.float() if x.is_floating_point() else x
    for dtype, size in ways:
        options: Any = {"damping": DAMPING, "dtype": dtype, "micro_batch_size": size}
        found = evalkit.score(model, x, LABELS, methods=methods, **options).gamma
        assert list(found) == pytest.approx(list(expected), rel=1e-7 if dtype else 1e-4)
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


# --- models ----------------------------------------------------------------------------------


def gated(gate: Callable[[Tensor], Tensor]) -> Net:
    def rule(net: Any, x: Tensor) -> Tensor:
        h = F.hardswish(net.first(x))
        return net.out((h * gate(net.gate(h.mean(2, keepdim=True)))).flatten(1))

    return Net(rule, first=nn.Conv1d(4, 5, 3), gate=nn.Conv1d(5, 5, 1), out=nn.Linear(30, 3))


def test_squeeze_and_excitation_with_hard_sigmoids() -> None:
    """As MobileNetV3 has them."""
    model = gated(nn.Hardsigmoid(inplace=True))
    scored_alike(model, gated(lambda x: (x + 3).clamp(0, 6) / 6), TOKENS)


def test_distances_to_prototypes() -> None:
    model = Net(
        lambda net, x: -torch.cdist(net.first(x.flatten(1)), net.prototypes),
        first=nn.Linear(32, 4),
        prototypes=nn.Parameter(torch.zeros(3, 4)),
    )
    agrees_with_dense(model, TOKENS)


def heads(net: Any, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(net.projection(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4))


def attending(attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Net:
    def rule(net: Any, x: Tensor) -> Tensor:
        return net.out(attention(*heads(net, x)).transpose(1, 2).flatten(2)[:, -1])

    return Net(rule, projection=nn.Linear(8, 24), out=nn.Linear(8, 3))


def written_out(
    q: Tensor, k: Tensor, v: Tensor, slope: float = 0.0, causal: bool = False
) -> Tensor:
    steps = torch.arange(q.shape[2])
    apart = steps[:, None] - steps
    scores = q @ k.mT / q.shape[-1] ** 0.5 + slope * apart
    if causal:
        scores = scores.masked_fill(apart < 0, -torch.inf)
    return scores.softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def sloped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + 0.3 * (i - j))


def blocked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    length = q.shape[2]
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device="cpu")
    return flex_attention(q, k, v, block_mask=mask)


@pytest.mark.parametrize(
    ("attention", "options"),
    [(fused, {}), (sloped, {"slope": 0.3}), (blocked, {"causal": True})],
    ids=["a kernel chosen by the model", "flex_attention", "flex_attention of blocks"],
)
def test_fused_attention(attention: Any, options: dict[str, Any]) -> None:
    plain = attending(lambda q, k, v: written_out(q, k, v, **options))
    scored_alike(attending(attention), plain, TOKENS)


# --- scripted code ---------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A loop that is worth compiling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(8, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(2):
            h = torch.tanh(self.norm(h) + 0.5) + h.sigmoid()
        return self.out(h)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["scripted", "traced", "inside", "trained before"])
def test_scripted_modules_at_every_batch(kind: str) -> None:
    x, plain = TOKENS[:, 0], Recurrent()
    inner = deepcopy(plain)
    model: Any = torch.jit.trace(inner, x.float()) if kind == "traced" else torch.jit.script(inner)
    if kind == "trained before":  # its executor has specialised the code
        for _ in range(4):
            F.cross_entropy(model(x.float()), LABELS).backward()
        model.zero_grad()
    if kind == "inside":
        model, plain = nn.Sequential(model, nn.Tanh()), nn.Sequential(plain, nn.Tanh())
    again = [(None, None)] * 3 + [("float64", None), (None, 3), ("float64", 3)]
    scored_alike(model, plain, x, again)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_operators_that_torch_differentiates_once_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.Hardsigmoid(), nn.Linear(5, 3))
    with pytest.raises(evalkit.EvalkitError, match="pass the module that was scripted"):
        evalkit.score(torch.jit.script(model), TOKENS[:, 0].float(), LABELS)
    dropout = torch.jit.script(nn.Sequential(nn.Linear(8, 3), nn.Dropout()))
    with pytest.raises(evalkit.EvalkitError, match="deterministic forward"):
        evalkit.score(dropout, TOKENS[:, 0].float(), LABELS)


# --- mixtures of experts ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen2Moe"])
def test_mixtures_of_experts(kind: str) -> None:
    """Their grouped products know no float64; which experts a token takes is the same."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts_per_tok": 2}
    sizes |= {"max_position_embeddings": 8, "num_labels": 3, "pad_token_id": 0}
    if kind == "Mixtral":
        sizes |= {"num_local_experts": 3}
    else:
        sizes |= {"num_experts": 3, "moe_intermediate_size": 5, "decoder_sparse_step": 1}
        sizes |= {"shared_expert_intermediate_size": 5}
    make = getattr(transformers, f"{kind}ForSequenceClassification")
    model, plain = (make(getattr(transformers, f"{kind}Config")(**sizes)).eval() for _ in range(2))
    plain.set_experts_implementation("eager")
    plain.set_attn_implementation("eager")
    before = model.get_experts_implementation()
    tokens, ways = 1 + Draw(5).integers(10, 6, 4), [(None, None), ("float64", None)]
    scored_alike(model, plain, tokens, ways, ("sgd", "ief"))
    assert model.get_experts_implementation() == before


# --- samples of several lengths, one after the other ------------------------------------------


def test_bags_to_a_last_offset_have_no_input_as_long_as_the_batch() -> None:
    model = nn.Sequential(nn.EmbeddingBag(6, 3, include_last_offset=True))
    inputs = (Draw(6).integers(6, 12), torch.tensor([0, 3, 3, 5, 6, 8, 12]))
    plain = nn.Sequential(nn.EmbeddingBag(6, 3))

    class Both(nn.Module):
        def __init__(self, bag: nn.Module) -> None:
            super().__init__()
            self.bag, self.out = bag, nn.Linear(3, 3)

        def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
            return self.out(torch.tanh(self.bag(x, offsets)))

    found, expected = Both(model[0]), Both(plain[0])
    initialise(expected.double(), Draw(3))
    found.double().load_state_dict(expected.state_dict())
    tables = [
        evalkit.score(model, given, LABELS, methods=METHODS, damping=DAMPING)
        for model, given in ((found, inputs), (expected, (inputs[0], inputs[1][:-1])))
    ]
    assert list(tables[0].gamma) == pytest.approx(list(tables[1].gamma), rel=1e-9)
    with pytest.raises(evalkit.EvalkitError, match="6 samples on axis 0"):
        evalkit.score(found, (inputs[0], inputs[1][:-1]), LABELS)
    with pytest.raises(evalkit.EvalkitError, match="a few at a time"):
        evalkit.score(found, inputs, LABELS, micro_batch_size=2)


class Graphs(nn.Module):
    """Nodes of all graphs, edges between them, and the graph of each node."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, nodes: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        h = torch.tanh(self.first(nodes))
        h = h.index_add(0, edges[1], h[edges[0]])
        return self.out(h.new_zeros(int(graph.max()) + 1, 5).index_add(0, graph, h))


def test_graphs_of_several_sizes() -> None:
    """Compared with a batch whose graphs are rows: none of its inputs is as long as the batch."""
    model = Graphs().double()
    initialise(model, Draw(3))
    graph = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 4, 5, 5])
    edges = torch.tensor([[0, 1, 4, 6, 7, 10, 2], [1, 2, 5, 8, 6, 11, 2]])
    nodes = Draw(4).normal(12, 4)
    with pytest.warns(UserWarning, match="sample axis is not axis 0"):
        agrees(
            evalkit.linearize(model, (nodes, edges, graph), LABELS),
            dense.dense(model, (nodes, edges, graph), LABELS, "categorical"),
        )


# --- what stays refused ----------------------------------------------------------------------


def changed_in_place(net: Any, x: Tensor) -> Tensor:
    return net.out(net.first(x).sigmoid().mul_(2))


def nested(net: Any, x: Tensor) -> Tensor:
    rows = torch.nested.as_nested_tensor([row.view(2, 4) for row in x])
    return net.out(torch.nested.to_padded_tensor(torch.tanh(net.short(rows)), 0.0).flatten(1))


def aligned(net: Any, x: Tensor) -> Tensor:
    steps = net.first(x).view(-1, 4, 2).transpose(0, 1).log_softmax(-1)
    ones = torch.ones(len(x), dtype=torch.long)
    loss = F.ctc_loss(steps, ones[:, None], 4 * ones, ones, reduction="none")
    return net.out(loss[:, None].expand(-1, 8))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("rule", "words"),
    [(changed_in_place, "in place"), (nested, "nested|Nested"), (aligned, "ctc_loss")],
)
def test_what_torch_cannot_differentiate_is_told_in_a_sentence(rule: Any, words: str) -> None:
    model = Net(rule, first=nn.Linear(8, 8), short=nn.Linear(4, 4), out=nn.Linear(8, 3)).double()
    case = Batch(model, TOKENS[:, 0], LABELS, "categorical")
    with pytest.raises(evalkit.EvalkitError, match=words) as raised:
        evalkit.score(*case, methods=METHODS)
    assert len(str(raised.value)) < 900
