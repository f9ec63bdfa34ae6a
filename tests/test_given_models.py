"""Models as users have them, half, compiled, wrapped: the right value, or one sentence."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evalkit
from evalkit.cli import main
from evalkit.cost import _problem
from evalkit.linearization.failures import forward_failures
from evalkit.linearization.precision import AtLeast
from evalkit.settings import Settings
from evalkit.tasks import Task
from tests.given import (
    TARGETS,
    Around,
    Two,
    expected,
    found,
    inputs,
    plain,
    scores_right,
    sentence,
)

# --- half precision ----------------------------------------------------------------------------

HALF: dict[str, tuple[torch.dtype, Callable[[Any, Tensor], Any]]] = {
    "to": (torch.bfloat16, lambda m, x: m(x.to(torch.bfloat16)).float()),
    "to by keyword": (torch.float16, lambda m, x: m(x.to(dtype=torch.float16))),
    "bfloat16": (torch.bfloat16, lambda m, x: m(x.bfloat16())),
    "half": (torch.float16, lambda m, x: m(x.half()).float()),
    "type": (torch.float16, lambda m, x: m(x.type(torch.float16))),
    "type of tensors": (torch.float16, lambda m, x: m(x.type(torch.HalfTensor))),
    "name of a type": (torch.bfloat16, lambda m, x: m(x.type("torch.BFloat16Tensor"))),
    "the dtype of a weight": (torch.float16, lambda m, x: m(x.to(m[0].weight.dtype))),
    "a new tensor": (
        torch.bfloat16,
        lambda m, x: m(x.bfloat16() @ torch.eye(4, dtype=torch.bfloat16)),
    ),
    "a tensor kept beside": (torch.bfloat16, lambda m, x: m(x.bfloat16() @ EYE)),
    "autocast": (torch.float32, lambda m, x: cast_by_torch(m, x)),
    "a float32 model": (torch.float32, lambda m, x: m(x.half().float())),
}
EYE = torch.eye(4, dtype=torch.bfloat16)


def cast_by_torch(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output: Tensor = model(x)
    return output


@pytest.mark.parametrize("kind", HALF)
def test_forwards_that_cast_to_half_precision(kind: str) -> None:
    dtype, rule = HALF[kind]
    known = expected(plain(dtype))
    scores_right(Around(rule, plain(dtype)), inputs(), known=known)
    again = found(Around(rule, plain(dtype)), inputs(), dtype="float64")
    assert again == pytest.approx(known, rel=1e-10)


def test_a_score_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores_right(plain(), inputs())
        with pytest.raises(evalkit.EvalkitError, match=r"torch\.autocast"):
            evalkit.linearize(plain(), inputs(), TARGETS)


def test_bits_that_are_read_in_another_type_stay_as_they_are() -> None:
    bits = torch.tensor([1.0, -2.5]).view(torch.int32)
    with AtLeast(torch.float64, "cpu"):
        assert bits.view(torch.float32).tolist() == [1.0, -2.5]
        assert bits.view(2, 1).shape == (2, 1)


# --- compiled, wrapped -------------------------------------------------------------------------


def compiled_in_place() -> nn.Module:
    model = plain()
    model.compile(backend="aot_eager")
    return model


def compiled_in_part() -> nn.Module:
    model = plain()
    return nn.Sequential(torch.compile(model[:2], backend="aot_eager"), model[2])


def compiled_function() -> nn.Module:
    same = torch.compile(lambda x: x * 2 / 2, backend="aot_eager")
    return Around(lambda m, x: m(same(x)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.compile(plain(), backend="aot_eager"),
        compiled_in_place,
        compiled_in_part,
        compiled_function,
        lambda: nn.DataParallel(plain()),
    ],
    ids=["whole", "in place", "in part", "a function in the forward", "data parallel"],
)
def test_compiled_and_wrapped_models_are_evaluated_eagerly(make: Callable[[], nn.Module]) -> None:
    scores_right(make(), inputs())


def test_parameters_have_the_names_of_the_model_that_was_compiled() -> None:
    whole = evalkit.linearize(torch.compile(plain(), backend="aot_eager"), inputs(), TARGETS)
    part = evalkit.linearize(compiled_in_part(), inputs(), TARGETS)
    assert list(whole._batches.parameters) == list(dict(plain().named_parameters()))
    assert list(part._batches.parameters) == ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]


def test_a_compiled_part_is_named_as_it_is_without_compilation() -> None:
    model = nn.Sequential(torch.compile(nn.Linear(5, 5), backend="aot_eager"))
    assert "module '0' (Linear)" in sentence(model, inputs())


# --- without a graph, under inference mode, not yet whole ----------------------------------------


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def unused() -> nn.Module:
    model = Around(lambda m, x: m(x), plain().requires_grad_(False))
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    return model


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Around(torch.no_grad()(lambda m, x: m(x))), "the model itself (Around)"),
        (lambda: Around(torch.inference_mode()(lambda m, x: m(x))), "the model itself (Around)"),
        (lambda: nn.Sequential(plain(), Detached()), "module '1' (Detached)"),
        (lambda: Around(lambda m, x: torch.tensor(m(x).tolist())), "the model itself (Around)"),
        (unused, "requires_grad"),
    ],
    ids=["no_grad", "inference mode", "detached", "by way of numbers", "unused"],
)
def test_logits_without_a_graph_are_refused(make: Callable[[], nn.Module], told: str) -> None:
    message = sentence(make(), inputs())
    assert "with a graph" in message
    assert told in message


def test_a_model_made_under_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(*plain(), nn.BatchNorm1d(3)).eval()
    scores_right(model, inputs(), known=expected(nn.Sequential(*plain(), nn.BatchNorm1d(3)).eval()))
    model[0].requires_grad_(False)
    scores_right(model[:3], inputs(), known=expected(nn.Sequential(*frozen(plain()))))


def frozen(model: nn.Sequential) -> nn.Sequential:
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3)), "module '0' (LazyLinear)"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.LazyBatchNorm1d()).eval(), "one batch through"),
        (lambda: plain().to("meta"), "meta device"),
        (lambda: lambda x: x, "torch.nn.Module"),
    ],
    ids=["lazy", "lazy statistics", "meta", "no module"],
)
def test_models_that_are_not_whole_are_refused(make: Callable[[], Any], told: str) -> None:
    assert told in sentence(make(), inputs())


# --- outputs -------------------------------------------------------------------------------------

Prediction = namedtuple("Prediction", "prediction aux")
Logits = namedtuple("Logits", "logits aux")

OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "object": lambda z: SimpleNamespace(logits=z),
    "dict": lambda z: {"loss": None, "logits": z},
    "tuple of one": lambda z: (z,),
    "list of one": lambda z: [z],
    "with a loss": lambda z: (z, z.sum()),
    "with nothing": lambda z: (z, None),
    "with attention and states": lambda z: (z, (torch.zeros(6, 2, 5, 5), [torch.zeros(2, 6, 7)])),
    "with classes": lambda z: (z, z.argmax(-1)),
    "with a value for all samples": lambda z: (z, torch.zeros(1, 3)),
    "named tuple": lambda z: Prediction(z, None),
    "named tuple with logits": lambda z: Logits(z, z),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_hold_the_logits(kind: str) -> None:
    scores_right(Around(lambda m, x: OUTPUTS[kind](m(x))), inputs())


OUTPUTS_REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "no logits": (lambda z: SimpleNamespace(logits=None), "NoneType in its SimpleNamespace"),
    "no logits in a dict": (lambda z: {"logits": None}, "NoneType in its dict"),
    "another key": (lambda z: {"out": z, "aux": z}, "a dict with 'out', 'aux'"),
    "features beside": (lambda z: (z, torch.zeros(len(z), 7)), "tensor (6, 3), a tensor (6, 7)"),
    "two heads": (lambda z: (z, [z]), "can be the logits"),
    "a loss first": (lambda z: (z.sum(), z), "found "),
    "nothing": (lambda z: None, "NoneType"),
    "an empty tuple": (lambda z: (), "tuple"),
    "an array": (lambda z: z.detach().numpy(), "ndarray"),
    "classes": (lambda z: z.argmax(-1), "int64"),
    "complex numbers": (lambda z: z + 0j, "complex64"),
    "sparse": (lambda z: z.to_sparse(), "sparse_coo"),
    "nested": (lambda z: torch.nested.as_nested_tensor(list(z)), "nested"),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("kind", OUTPUTS_REFUSED)
def test_outputs_that_are_refused(kind: str) -> None:
    output, told = OUTPUTS_REFUSED[kind]
    assert told in sentence(Around(lambda m, x: output(m(x))), inputs())


# --- what a forward raises ------------------------------------------------------------------------


class Raises(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


def test_an_exception_of_a_forward_is_a_sentence_that_names_the_layer() -> None:
    error = KeyError("no such row\nat all")
    model = nn.Sequential(plain(), nn.Sequential(Raises(error)))
    message = sentence(model, inputs())
    assert "KeyError" in message
    assert "module '1.0' (Raises)" in message
    with pytest.raises(evalkit.EvalkitError) as caught:
        found(model, inputs())
    assert caught.value.__cause__ is error


def test_arguments_that_a_forward_does_not_take() -> None:
    assert "'b'" in sentence(Two(), inputs())
    message = sentence(plain(), {"x": inputs()})
    assert "unexpected keyword argument 'x'" in message
    assert "'x': float32 (6, 4)" in message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_says_what_to_lower(error: BaseException) -> None:
    assert "micro_batch_size" in sentence(nn.Sequential(plain(), Raises(error)), inputs())


def test_a_lack_of_memory_in_a_method_says_what_to_lower() -> None:
    @evalkit.method("large")
    def large(lin: evalkit.Linearization, damping: float) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert "micro_batch_size" in sentence(plain(), inputs(), methods=("sgd", "large"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_a_program_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        found(nn.Sequential(plain(), Raises(error)), inputs())


def test_a_sentence_of_the_model_passes() -> None:
    own = evalkit.EvalkitError("expected one thing, found another; do this")
    assert sentence(nn.Sequential(plain(), Raises(own)), inputs()) == str(own)


def test_logits_that_are_not_finite_are_called_so_in_parts_of_a_batch_too() -> None:
    assert "18 that are NaN" in sentence(plain(), inputs() * math.nan)


def test_inputs_on_another_device_are_to_be_moved() -> None:
    with (
        pytest.raises(evalkit.EvalkitError, match="move the inputs from meta to cpu"),
        forward_failures(plain(), (inputs().to("meta"),)),
    ):
        raise RuntimeError("Expected all tensors to be on the same device")


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError("no way back")


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (lambda m, x: torch.igamma(m(x).exp(), torch.ones(3)), "NotImplementedError"),
        (lambda m, x: FailsBackward.apply(m(x)), "ValueError: no way back"),
    ],
    ids=["no derivative", "an error of its own"],
)
def test_an_exception_of_a_backward_is_a_sentence(rule: Any, told: str) -> None:
    assert told in sentence(Around(rule), inputs())


def test_checkpointing_that_would_run_again_in_half_precision() -> None:
    def rule(model: Any, x: Tensor) -> Any:
        return checkpoint(lambda y: model(y.half().float()), x, use_reentrant=False)

    assert "activation checkpointing" in sentence(Around(rule), inputs())


# --- as the model of a task -----------------------------------------------------------------------

CODE = """
import torch
from torch import nn
import evalkit

def plain():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = plain().bfloat16()
    def forward(self, x):
        return {"logits": self.inner(x.bfloat16()).float()}

def inference():
    with torch.inference_mode():
        return plain()

def data():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(12, 4, generator=draw), torch.arange(12) % 3

def task(model):
    return evalkit.Task(model=model, data=data, recipe=evalkit.tasks.Recipe(epochs=1, batch_size=6))

whole = task(plain)
compiled = task(lambda: torch.compile(plain(), backend="aot_eager"))
half = task(Half)
inference = task(inference)
lazy = task(lambda: nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3)))
failing = task(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(4, 3)))
"""


@pytest.fixture
def code(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def score(folder: str, name: str) -> int:
    options = ["--methods", "sgd,ief", "--batches", "1", "--batch-size", "6"]
    return main(["score", folder, "--task", f"mine.py:{name}", *options, "--out", f"run-{name}"])


@pytest.mark.parametrize("name", ["compiled", "half", "inference"])
def test_tasks_with_such_models(name: str, code: Any) -> None:
    assert main(["train", f"mine.py:{name}", "--out", "saved"]) == 0
    assert score("saved", name) == 0
    if name != "half":
        assert score("saved", "whole") == 0
        runs = [(code / f"run-{one}" / "scores.csv").read_text() for one in (name, "whole")]
        assert runs[0] == runs[1]


def test_the_cost_of_a_model_that_casts_to_half_precision() -> None:
    def rule(model: Any, x: Tensor) -> Any:
        return model(x.bfloat16())

    task = Task(lambda: Around(rule, plain(torch.bfloat16)), lambda: (inputs(), TARGETS))
    problem = _problem(task, Settings(("sgd",), (0.0,), 1, 6, 0))
    assert problem.step() > 0
    assert problem.scores(("sgd",))[0].dtype == "float32"


@pytest.mark.parametrize(
    ("name", "told"),
    [("lazy", "module '0' (LazyLinear)"), ("failing", "mat1 and mat2")],
)
def test_tasks_whose_models_are_refused(
    name: str, told: str, code: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"mine.py:{name}", "--out", "saved"]) == 2
    message = capsys.readouterr().err.strip()
    assert told in message
    assert "\n" not in message


def test_the_model_of_a_task_is_the_one_inside() -> None:
    task = Task(lambda: torch.compile(plain(), backend="aot_eager"), lambda: (inputs(), TARGETS))
    assert type(task.build_model(0)) is nn.Sequential
