"""Models as users have them, half, compiled, wrapped: the right value, or one sentence."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.evaluation.precision import AtLeast
from tests.support.given import (
    TARGETS,
    Around,
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
