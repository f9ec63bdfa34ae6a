"""Products and Gram matrices on a device are those of the dense float64 reference."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import evalkit
from evalkit.linearization.gram import ROUTES, gram_matrix
from evalkit.linearization.per_sample import CannotVectorizeError
from tests.cuda.comparison import case, convolutions, every_case, near_in_norm, scores
from tests.cuda.comparison import within_their_errors as within
from tests.support import dense
from tests.support.agreement import agrees
from tests.support.cases import CASES
from tests.support.chosen_cases import SECOND_ROUTE_NEEDED
from tests.support.dense import assert_near
from tests.support.other_device import NAME
from tests.support.table import Batch, Draw, Net, initialise


@every_case
def test_products_and_gram_matrices_are_those_of_the_dense_reference(
    name: str, device: str
) -> None:
    batch = case(name, device)
    agrees(evalkit.linearize(*batch.on(device)), dense.dense(*batch))


@pytest.mark.parametrize("name", [name for name in CASES if name not in SECOND_ROUTE_NEEDED])
def test_routes_agree(name: str, device: str) -> None:
    lin = evalkit.linearize(*case(name, device).on(device))
    c = torch.stack([lin.logit_gradients, lin.logit_gradients.flip(-1)])
    expected = gram_matrix(lin.batches, c, ROUTES[2])
    assert_near(gram_matrix(lin.batches, c, ROUTES[0]), expected)
    try:
        found = gram_matrix(lin.batches, c, ROUTES[1])
    except CannotVectorizeError:
        return
    assert_near(found, expected)


@every_case
def test_factors_are_those_of_the_cpu(name: str, device: str) -> None:
    batch = case(name, device)
    blocks = []
    for place in ("cpu", device):
        lin = evalkit.linearize(*batch.on(place))
        blocks.append(lin.gram_blocks(lin.logit_gradients.unsqueeze(0)))
    assert blocks[0].keys() == blocks[1].keys()
    whole = torch.stack([*blocks[0].values()]).sum(0)
    for names, block in blocks[0].items():  # a block may be zero but for rounding
        assert_near(blocks[1][names].cpu() + whole, block + whole)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(cell: type[nn.Module], device: str) -> None:
    """On a card these are cuDNN's."""
    if device == NAME:
        pytest.skip("a device that is written in Python has no recurrent cells")
    draw = Draw(0)
    model = Net(
        lambda net, x: net.head(net.cell(x)[0][:, -1]),
        cell=cell(4, 6, num_layers=2, batch_first=True),
        head=nn.Linear(6, 3),
    )
    initialise(model.double(), draw)
    batch = Batch(model, draw.normal(5, 7, 4), draw.integers(3, 5), "categorical")
    agrees(evalkit.linearize(*batch.on(device)), dense.dense(*batch))


def attention(form: str) -> Batch:
    """One layer of attention in float32, as wide as the fused kernels take it."""

    def rule(net: Net, x: torch.Tensor) -> torch.Tensor:
        q, k, v = net.projection(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        mask = torch.ones(8, 8, device=x.device).tril() > 0 if form == "masked" else None
        attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=form == "causal")
        return net.head(attended.transpose(1, 2).flatten(1))

    draw = Draw(0)
    model = Net(rule, projection=nn.Linear(32, 96), head=nn.Linear(256, 5))
    initialise(model, draw)
    return Batch(model.float(), draw.normal(6, 8, 32).float(), draw.integers(5, 6), "categorical")


KERNELS = (
    "default",
    "MATH",
    "FLASH_ATTENTION",
    "EFFICIENT_ATTENTION",
    "CUDNN_ATTENTION",
)


@pytest.mark.parametrize("form", ["plain", "causal", "masked"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_attention(kernel: str, form: str, device: str) -> None:
    """Whichever kernel the forward asks for, products are those of float64 on the CPU."""
    batch, exact = attention(form).on(device), attention(form)
    with nullcontext() if kernel == "default" else sdpa_kernel(getattr(SDPBackend, kernel)):
        try:
            batch.model(batch.inputs)
        except RuntimeError as error:
            pytest.skip(f"torch has no such kernel here: {str(error).splitlines()[0][:60]}")
        lin = evalkit.linearize(*batch)
        v = Draw(1).normal(lin.num_params)
        found = lin.fvp(v.float().to(device)), lin.gram
        table = evalkit.score(*batch, damping=1e-3)
    plain = evalkit.linearize(*exact, dtype="float64")
    near_in_norm(found[0], plain.fvp(v))
    near_in_norm(found[1], plain.gram)
    within(table, evalkit.score(*exact, damping=1e-3, dtype="float64"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_evaluated_in_float32(dtype: torch.dtype, device: str) -> None:
    half = attention("causal")
    half = half._replace(model=half.model.to(dtype), inputs=half.inputs.to(dtype))
    same = half.on("cpu")
    same = same._replace(model=same.model.double(), inputs=same.inputs.double())
    within(scores(half, device, damping=1e-3), scores(same, "cpu", damping=1e-3))


@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtype", ["float32", None])
def test_tensor_cores_take_no_digits(asked: str, dtype: str | None, device: str) -> None:
    """Convolutions are in TF32 by torch's default, with three digits; products if it is asked."""
    batch = convolutions()
    exact = evalkit.linearize(*batch, dtype="float64")
    v = Draw(1).normal(exact.num_params)
    table = scores(batch, "cpu", dtype="float64", damping=1e-3)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(asked)
    try:
        assert torch.backends.cudnn.allow_tf32
        lin = evalkit.linearize(*batch.on(device))
        near_in_norm(lin.fvp(v.float().to(device)), exact.fvp(v))
        near_in_norm(lin.gram, exact.gram)
        within(scores(batch, device, dtype=dtype, damping=1e-3), table)
        assert torch.get_float32_matmul_precision() == asked
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
