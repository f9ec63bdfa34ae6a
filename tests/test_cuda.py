"""A GPU gives the numbers of the dense float64 reference and of the CPU, on every case."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import evalkit
from evalkit.bench.memory import peak_mebibytes
from evalkit.cli import main
from evalkit.linearization.gram import ROUTES, gram_matrix
from evalkit.linearization.per_sample import CannotVectorizeError
from tests.support import dense
from tests.support.agreement import agrees
from tests.support.cases import CASES
from tests.support.chosen_cases import SECOND_ROUTE_NEEDED
from tests.support.dense import assert_near
from tests.support.table import Batch, Draw, Net, initialise

if not torch.cuda.is_available():  # once, and not for each of more than a thousand tests
    pytest.skip("no GPU is found", allow_module_level=True)

METHODS = ("sgd", "ef", "ief", "ief-tikhonov", "fgn", "polyak", "best-weights", "sf")
SOLVERS = ("ngd:solver=cg", "ngd:solver=direct", "ngd:solver=sketch")
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints" / "digits-mlp"


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Cases whose samples interact say that they are slow; what is slow is tested elsewhere."""
    warnings.filterwarnings("ignore", message="samples influence each other")


@pytest.mark.parametrize("name", CASES)
def test_products_and_gram_matrices_are_those_of_the_dense_reference(name: str) -> None:
    batch = CASES[name].make()
    agrees(evalkit.linearize(*batch.on("cuda")), dense.dense(*batch))


@pytest.mark.parametrize("name", [name for name in CASES if name not in SECOND_ROUTE_NEEDED])
def test_routes_agree(name: str) -> None:
    lin = evalkit.linearize(*CASES[name].make().on("cuda"))
    c = torch.stack([lin.logit_gradients, lin.logit_gradients.flip(-1)])
    expected = gram_matrix(lin.batches, c, ROUTES[2])
    assert_near(gram_matrix(lin.batches, c, ROUTES[0]), expected)
    try:
        found = gram_matrix(lin.batches, c, ROUTES[1])
    except CannotVectorizeError:
        return
    assert_near(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_factors_are_those_of_the_cpu(name: str) -> None:
    batch = CASES[name].make()
    blocks = []
    for device in ("cpu", "cuda"):
        lin = evalkit.linearize(*batch.on(device))
        blocks.append(lin.gram_blocks(lin.logit_gradients.unsqueeze(0)))
    assert blocks[0].keys() == blocks[1].keys()
    whole = torch.stack([*blocks[0].values()]).sum(0)
    for names, block in blocks[0].items():  # a block may be zero but for rounding
        assert_near(blocks[1][names].cpu() + whole, block + whole)


def scores(batch: Batch, device: str, **settings: object) -> pd.DataFrame:
    return evalkit.score(*batch.on(device), **settings)


@pytest.mark.parametrize("damping", [1e-12, 1e-3])
@pytest.mark.parametrize("name", CASES)
def test_float64_scores_are_those_of_the_cpu(name: str, damping: float) -> None:
    batch = CASES[name].make()
    settings = {"methods": METHODS, "damping": damping}
    found, expected = (scores(batch, device, **settings) for device in ("cuda", "cpu"))
    within_their_errors(found, expected)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", CASES)
def test_float64_natural_gradients_are_those_of_the_cpu(name: str, solver: str) -> None:
    batch = CASES[name].make()
    settings = {"methods": [solver], "damping": 1e-3}
    try:
        expected = scores(batch, "cpu", **settings)
    except evalkit.EvalkitError as error:  # a sketch wants layers with a rule
        with pytest.raises(evalkit.EvalkitError, match=str(error)[:20]):
            scores(batch, "cuda", **settings)
        return
    within_their_errors(scores(batch, "cuda", **settings), expected)


@pytest.mark.parametrize("name", CASES)
def test_float32_scores_are_within_their_errors(name: str) -> None:
    exact = CASES[name].make()
    settings = {"methods": (*METHODS, "ngd"), "damping": 1e-3}
    found = scores(CASES[name].make(torch.float32), "cuda", **settings)
    rounded = CASES[name].make(torch.float32)
    same = Batch(rounded.model.double(), exact.inputs, exact.targets, exact.likelihood)
    inputs = dense.to_dtype(rounded.inputs, torch.float64)
    targets = dense.to_dtype(rounded.targets, torch.float64)
    within_their_errors(
        found, scores(same._replace(inputs=inputs, targets=targets), "cpu", **settings)
    )


def within_their_errors(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Gammas differ by no more than both tables say that they may, and rounding."""
    assert list(found["method"]) == list(expected["method"])
    allowed = found["error"] + expected["error"] + 1e-9
    relative = (found["gamma"] / expected["gamma"] - 1).abs().fillna(0.0)
    same = (found["gamma"] == expected["gamma"]) | (allowed == np.inf) | (relative <= allowed)
    assert same.all(), pd.DataFrame({"off": relative, "allowed": allowed, "gamma": found["gamma"]})


def convolutions() -> Batch:
    """Wide enough for tensor cores, in float32."""
    draw = Draw(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2),
        nn.GroupNorm(8, 64),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.Tanh(),
        nn.Linear(128, 10),
    )
    initialise(model, draw)
    return Batch(
        model.float(), draw.normal(32, 3, 16, 16).float(), draw.integers(10, 32), "categorical"
    )


@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtype", ["float32", None])
def test_tensor_cores_take_no_digits(asked: str, dtype: str | None) -> None:
    """Convolutions are in TF32 by torch's default, with three digits; products if it is asked."""
    batch = convolutions()
    exact = evalkit.linearize(*batch, dtype="float64")
    v = Draw(1).normal(exact.num_params)
    table = scores(batch, "cpu", dtype="float64", damping=1e-3)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(asked)
    try:
        assert torch.backends.cudnn.allow_tf32
        lin = evalkit.linearize(*batch.on("cuda"))
        assert_close_in_norm(lin.fvp(v.float().cuda()), exact.fvp(v))
        assert_close_in_norm(lin.gram, exact.gram)
        within_their_errors(scores(batch, "cuda", dtype=dtype, damping=1e-3), table)
        assert torch.get_float32_matmul_precision() == asked
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def assert_close_in_norm(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found.cpu().double() - expected).norm() / expected.norm()
    assert float(error) < 1e-5


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_of_cudnn(cell: type[nn.Module]) -> None:
    draw = Draw(0)
    model = Net(
        lambda net, x: net.head(net.cell(x)[0][:, -1]),
        cell=cell(4, 6, num_layers=2, batch_first=True),
        head=nn.Linear(6, 3),
    )
    initialise(model.double(), draw)
    batch = Batch(model, draw.normal(5, 7, 4), draw.integers(3, 5), "categorical")
    agrees(evalkit.linearize(*batch.on("cuda")), dense.dense(*batch))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", ["mlp_categorical", "convolution_group_norm", "mlp_bernoulli"])
def test_micro_batches(name: str, size: int) -> None:
    batch = CASES[name].make()
    settings = {"methods": METHODS, "damping": 1e-3}
    found = scores(batch, "cuda", micro_batch_size=size, **settings)
    within_their_errors(found, scores(batch, "cpu", **settings))


def test_the_random_state_of_the_gpu_is_left_alone() -> None:
    model, inputs, targets, likelihood = CASES["convolution_group_norm"].make().on("cuda")
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    evalkit.score(model, inputs, targets, likelihood, (*METHODS, *SOLVERS), damping=1e-3)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_conjugate_gradients_wait_for_the_gpu_once_an_iteration() -> None:
    batch = convolutions().on("cuda")
    lin = evalkit.linearize(*batch)
    evalkit.natural_gradient(lin, max_iterations=3, tolerance=0.0)
    waits = [waits_of(lin, iterations) for iterations in (5, 25)]
    assert waits[1] - waits[0] <= 2 * 20  # the numbers that decide, and the length of the residual


def waits_of(lin: evalkit.Linearization, iterations: int) -> int:
    """Return how often the CPU waits for the GPU in so many iterations."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = evalkit.natural_gradient(lin, max_iterations=iterations, tolerance=0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.iterations == iterations
    return sum("synchroniz" in str(one.message) for one in told)


def test_memory_is_counted() -> None:
    taken = peak_mebibytes(lambda: torch.ones(1 << 20, device="cuda"), torch.device("cuda"))
    assert taken is not None
    assert 4 <= taken <= 6


def test_a_run_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        request = ["--methods", "sgd,ef,ief,sf,ngd", "--batches", "2", "--out", str(out)]
        assert main(["score", str(CHECKPOINTS), *request, "--device", device]) == 0
        tables[device] = pd.read_csv(out / "scores.csv")
        assert main(["report", str(out)]) == 0
    within_their_errors(tables["cuda"], tables["cpu"])
    assert main(["cost", "digits-mlp", "--device", "cuda", "--out", str(tmp_path / "cost")]) == 0
    assert "cuda" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["adamw", "ief", "sf", "kfac:labels=improved"])
def test_a_training_starts_and_goes_on(optimizer: str, tmp_path: Path) -> None:
    """Steps on a GPU are those on a CPU, but for rounding; an interrupted one ends alike."""
    given = ["train", "digits-mlp", "--optimizer", optimizer, "--learning-rate", "0.01"]
    given += ["--weight-decay", "0", "--epochs", "2", "--checkpoint-every", "1"]
    given += ["--damping", "1e-2"] if optimizer != "adamw" else []
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        assert main([*given, "--device", device, "--out", str(folder)]) == 0
        assert main([*given, "--device", device, "--out", str(folder), "--resume"]) == 0
    losses = [pd.read_csv(tmp_path / device / "history.csv")["loss"] for device in ("cpu", "cuda")]
    np.testing.assert_allclose(losses[1][:20], losses[0][:20], rtol=1e-3)
