"""What the optimisers have in common: one forward, a direction, and what is done with it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from evalkit import likelihoods
from evalkit.errors import EvalkitError
from evalkit.group import Group
from evalkit.linearization import Linearization
from evalkit.optim.recorded import Closure, Forwards, StepError, all_or_none, mean_loss
from evalkit.optim.whole_batch import WholeBatch, whole_batch
from evalkit.settings import (
    OnFailure,
    check_damping,
    check_momentum,
    check_normalise,
    check_on_failure,
    check_seed,
)

Gram = Literal["rank", "batch"]
Direction = Mapping[str, Tensor]


class ClosureOptimizer(Optimizer):
    """An optimiser whose step runs the forward and needs per-sample gradients of it.

    With d the direction of the method for the mean loss of the batch, learning rate eta, weight
    decay omega, decoupled as AdamW's, and momentum mu, a step is

        v <- mu v + d,  theta <- (1 - eta omega) theta - eta v.

    Args:
        params: parameters or groups of them, as torch's optimisers take them.
        lr: eta, for the mean loss; of each group.
        damping: lambda >= 0, for the mean loss.
        likelihood: what the logits mean: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``.
        normalise: whether d is divided by its length over all groups, so that eta is the length of
            the step.
        weight_decay: omega; of each group.
        momentum: mu; of each group.
        on_failure: what is done with a batch of which no step can be taken, whose logits or losses
            are not finite or whose system is singular: ``"raise"`` an error, or ``"skip"`` it and
            count it in :attr:`skipped`.
        seed: of methods that draw samples; each step draws others.
        gram: under ``torch.distributed``, where every process steps with a batch of its own:
            ``"rank"`` averages the directions of the processes, each of the Gram matrix of its own
            batch; ``"batch"`` takes the samples of all as one batch, whose Gram matrix it makes of
            rows that are gathered.
        process_group: of these processes; None for all.

    Raises:
        EvalkitError: an argument is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        damping: float,
        likelihood: str,
        *,
        normalise: bool = False,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        on_failure: OnFailure = "raise",
        seed: int = 0,
        gram: Gram = "rank",
        process_group: Any = None,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if isinstance(value, str | None) or not 0 <= value < math.inf:
                raise EvalkitError(
                    f"expected `{name}` to be a finite number of at least 0, found {value!r}; "
                    "pass another"
                )
        if gram not in ("rank", "batch"):
            raise EvalkitError(
                f"expected `gram` 'rank' or 'batch', found {gram!r}; choose one of them"
            )
        likelihoods.get(likelihood)
        # Of the batch as a whole, and yet kept by group: that is where torch saves settings.
        self._whole = {
            "damping": check_damping(damping),
            "normalise": check_normalise(normalise),
            "seed": check_seed(seed),
            "steps": 0,
            "skipped": 0,
        }
        each = {"lr": lr, "weight_decay": weight_decay, "momentum": check_momentum(momentum)}
        self.likelihood, self.on_failure = likelihood, check_on_failure(on_failure)
        self.gram, self.process_group = gram, process_group
        self._forwards = Forwards(likelihood)
        super().__init__(params, {**each, **self._whole})

    _kept: ClassVar[tuple[str, ...]] = ("likelihood", "on_failure", "gram", "_whole", "_forwards")
    """Attributes that copies have; of its own, torch copies groups and state."""

    process_group: Any = None
    """Left out of copies, which may be of another process."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of."""
        return {**super().__getstate__(), **{name: vars(self)[name] for name in self._kept}}

    @abstractmethod
    def direction(self, lin: Linearization) -> Direction:
        """Return d for the mean loss by the names of the linearization's parameters.

        Args:
            lin: the recorded forward of the step.

        Raises:
            StepError: there is none.
        """

    @property
    def skipped(self) -> int:
        """Steps that were skipped."""
        return int(self._setting("skipped"))

    def _setting(self, name: str) -> Any:
        """Return a setting that all groups have in common.

        Raises:
            EvalkitError: groups differ in it.
        """
        found = {group[name] for group in self.param_groups}
        if len(found) > 1:
            raise EvalkitError(
                f"expected one `{name}` for all groups of parameters, whose gradients make one "
                f"system, found {sorted(found)}; set it for all of them"
            )
        return found.pop()

    def _count(self, name: str) -> None:
        for group in self.param_groups:
            group[name] += 1

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; what all groups have in common is that of the others."""
        if self.param_groups:
            common = {name: self.param_groups[0][name] for name in self._whole}
            param_group = {**common, **param_group}
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that such an optimiser saved, as torch's optimisers do.

        Raises:
            EvalkitError: it is one of another kind, without the settings of this.
        """
        for group in state_dict["param_groups"]:
            missing = sorted(self.defaults.keys() - group.keys())
            if missing:
                raise EvalkitError(
                    f"expected the state of {type(self).__name__}, found one without "
                    f"{', '.join(missing)}; load what this optimiser's state_dict() was"
                )
        super().load_state_dict(state_dict)

    @property
    def damping(self) -> float:
        """lambda, for the mean loss."""
        return float(self._setting("damping"))

    @property
    def draw(self) -> int:
        """The seed of the draws of this step."""
        rank = self.ranks.rank if self.gram == "rank" else 0
        generator = torch.Generator().manual_seed(int(self._setting("seed")) + 7_919 * rank)
        generator.manual_seed(generator.initial_seed() * 1_000_003 + int(self._setting("steps")))
        return int(torch.randint(2**31, (1,), generator=generator))

    def _named(self) -> dict[str, Tensor]:
        """Return the trainable parameters by name: their own, or their place in the groups."""
        found: dict[str, Tensor] = {}
        for i, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"{i}.{j}" for j in range(len(group["params"]))]
            found |= {
                name: parameter
                for name, parameter in zip(names, group["params"], strict=True)
                if parameter.requires_grad
            }
        return found

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Run the forward, and move the parameters along the direction of the method.

        Args:
            closure: runs the forward of a batch and returns (logits, targets); called once, with
                gradients on. No backward is wanted: gradients in ``.grad`` are neither read nor
                written.

        Returns:
            The mean loss of the batch before the step, detached; NaN of a batch that was skipped
            since it is not finite.

        Raises:
            EvalkitError: the closure returns something else.
            StepError: no step can be taken, and ``on_failure`` is ``"raise"``.
        """
        if closure is None or torch.is_inference_mode_enabled():
            what = "none" if closure is None else "torch.inference_mode() around it"
            raise EvalkitError(
                "expected a closure that runs the forward with gradients on and returns (logits, "
                f"targets), found {what}; call step(lambda: (model(inputs), targets)) in training"
            )
        parameters = self._named()
        loss = torch.tensor(float("nan"))
        ranks = self.ranks
        try:
            with all_or_none(ranks):
                lin = self._forwards.of_closure(closure, parameters)
            loss = mean_loss(lin, ranks)
            with all_or_none(ranks):
                found = self.direction(lin)
            found = self._joined(found, parameters, ranks)
            length = _length(found)
        except StepError:
            if self.on_failure == "raise":
                raise
            self._count("skipped")
        else:
            scale = 1.0
            if self._setting("normalise"):
                scale = 1 / length if length else 0.0
            self._move(parameters, found, scale)
        self._count("steps")
        return loss

    def whole(self, lin: Linearization, cotangents: Tensor) -> WholeBatch | None:
        """Return the samples of all processes where they are one batch, None where they are not.

        Args:
            lin: those of this process.
            cotangents: c, (K, n, ..., C) float64.
        """
        ranks = self.ranks
        together = self.gram == "batch" and ranks.size > 1
        return whole_batch(lin, cotangents, ranks) if together else None

    @property
    def ranks(self) -> Group:
        """The processes that step together."""
        return Group(self.process_group)

    def _joined(
        self, found: Direction, parameters: Mapping[str, Tensor], ranks: Group
    ) -> Direction:
        """Return the mean of the directions of all processes, or the sum of parts of one."""
        if ranks.size == 1:
            return found
        reached = set().union(*ranks.objects(sorted(found)))
        share = 1.0 if self.gram == "batch" else 1 / ranks.size
        joined = {
            name: share * found[name] if name in found else torch.zeros_like(parameters[name])
            for name in parameters
            if name in reached
        }
        ranks.sum(list(joined.values()))
        return joined

    @torch.no_grad()
    def _move(self, parameters: Mapping[str, Tensor], found: Direction, scale: float) -> None:
        names = {id(value): name for name, value in parameters.items()}
        for group in self.param_groups:
            for parameter in group["params"]:
                step = found.get(names.get(id(parameter), ""))
                if step is None:
                    continue
                factor = scale
                if group["momentum"]:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    step = state["momentum_buffer"].mul_(group["momentum"]).add_(step, alpha=scale)
                    factor = 1.0
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step, alpha=-group["lr"] * factor)


def _length(found: Direction) -> float:
    """Return |d|.

    Raises:
        StepError: it is not finite.
    """
    squares = [torch.linalg.vector_norm(d).double().square() for d in found.values()]
    length = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    if not length < float("inf"):
        raise StepError(
            "expected a finite direction, found NaN or infinity; raise the damping, bring inputs "
            "and targets nearer to order one, or set `on_failure` to 'skip'"
        )
    return length
