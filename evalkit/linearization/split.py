"""One batch split over the processes of a group: rank 0 leads, the others follow its calls.

Each process runs the forward of its own share of the samples and keeps its graph. Methods and
solvers run in rank 0 alone, on a linearization like any other: what it asks of the samples becomes
a call, a function with its arguments, which all processes run with their own share. So collectives
come in one order whatever a method decides, and nothing is decided in two places.

A share's part of a call that fails is made known to all before anything is sent: the error is
raised in rank 0, and the others wait for the next call.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import Inputs, check_batch, given_inputs, given_targets
from evalkit.evaluation.wrapped import evaluated_module
from evalkit.group import SHORT, Group
from evalkit.linearization.lost_ranks import LostRankError, lost_ranks, out_of_step
from evalkit.messages import bytes_of, forms_of, put_together, taken_apart

T = TypeVar("T")


class _Failed(Exception):
    """The error of a share that all processes know of.

    Attributes:
        error: what was raised there.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, eq=False)
class Given:
    """A model and a whole batch, as each process has them.

    Attributes:
        model: as its forward is called.
        inputs: of the whole batch.
        num_samples: N.
    """

    model: nn.Module
    inputs: Inputs
    num_samples: int


class Split:
    """The calls that the processes of a group run together, and what each keeps between them.

    Attributes:
        ranks: the processes.
        lost: why they cannot be called any more, if so.

    Args:
        ranks: the processes; each has the model and the whole batch, on a device of its own.
    """

    def __init__(self, ranks: Group) -> None:
        self.ranks = ranks
        self._given: Given | Exception | None = None
        self._held: dict[int, Any] = {}
        self._retired: list[int] = []
        self._keys = 0
        self.lost: LostRankError | None = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that methods run in."""
        return self.ranks.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process has its share."""
        if not isinstance(self._given, Given):
            return torch.device("cpu")
        values = (*self._given.model.parameters(), *self._given.model.buffers())
        return values[0].device if values else torch.device("cpu")

    @property
    def given(self) -> Given:
        """The model and the batch at work.

        Raises:
            Exception: what this process met with instead.
        """
        if isinstance(self._given, Given):
            return self._given
        raise RuntimeError("no batch is at work") if self._given is None else self._given

    def take(self, given: Given) -> None:
        """Take a model and a batch to work on; for rank 0."""
        self._given = given

    def tell(self, value: Any) -> None:
        """Tell the others something small that is no call; for rank 0."""
        self._broadcast(value, torch.device("cpu"))

    def told(self) -> Any:
        """Return what rank 0 tells."""
        with lost_ranks():
            return self.ranks.of_first(None, torch.device("cpu"))

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Lead the others within the block; at its end they know that it has ended."""
        try:
            yield
        except BaseException as error:
            # An interrupt may have come in the middle of a call: the end of this process then
            # tells the others.
            if isinstance(error, Exception):
                with suppress(EvalkitError):  # what went wrong first is what counts
                    self._say(None, ())
            raise
        else:
            if self.lost is None:
                self._say(None, ())
        finally:
            self._forget()

    def follow(self, prepare: Callable[[], tuple[nn.Module, Inputs, Tensor]]) -> None:
        """Run the calls of rank 0 until it ends.

        Args:
            prepare: returns the model, the inputs and the targets of the whole batch as rank 0 has
                them; an error of it is rank 0's.

        Raises:
            EvalkitError: rank 0 is gone.
        """
        before: list[tuple[Tensor, bool]] = []
        try:
            try:
                model, given, targets = prepare()
                module = evaluated_module(model)
                inputs = given_inputs(module, given)
                before = [(value, value.requires_grad) for value in module.parameters()]
                samples = check_batch(inputs, given_targets(targets))
                self._given = Given(module, inputs, samples)
            except Exception as error:
                self._given = error
            with full_precision():
                while (said := self._heard()) is not None:
                    function, arguments = said
                    try:
                        function(self, *arguments)
                    except _Failed:  # rank 0 has it
                        continue
        finally:
            self._forget()
            for value, trainable in before:
                value.requires_grad_(trainable)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in all processes, and return what it returns in rank 0.

        Args:
            function: importable by its name; called with this object and the arguments, it may use
                what all processes of a group use together.
            arguments: of it, made of anything that can be pickled, and of tensors.

        Raises:
            Exception: what a share's part of it raised.
        """
        self._say(function, arguments)
        try:
            return function(self, *arguments)
        except _Failed as failed:
            raise failed.error from None
        except BaseException as error:
            self.lost = error if isinstance(error, LostRankError) else out_of_step(error)
            raise

    def _say(self, function: Callable[..., Any] | None, arguments: tuple[Any, ...]) -> None:
        retired, self._retired = self._retired, []
        self._broadcast((retired, function, arguments), self.device)

    def _broadcast(self, value: Any, device: torch.device) -> None:
        if self.lost is not None:
            raise self.lost
        try:
            with lost_ranks():
                self.ranks.of_first(value, device)
        except LostRankError as error:
            self.lost = error
            raise

    def _heard(self) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        with lost_ranks():
            said: Any = self.ranks.of_first(None, self.device)
        retired, function, arguments = said
        for key in retired:
            self._held.pop(key, None)
        return None if function is None else (function, arguments)

    def _forget(self) -> None:
        self._held.clear()
        self._retired, self._given = [], None

    def new_key(self) -> int:
        """Return a key for something that each process keeps; for rank 0."""
        self._keys += 1
        return self._keys

    def keep(self, key: int, value: Any) -> None:
        """Keep something of this process under a key."""
        self._held[key] = value

    def kept(self, key: int) -> Any:
        """Return what this process keeps under a key."""
        return self._held[key]

    def retire(self, key: int) -> None:
        """Let go of what is kept under a key, here now and elsewhere with the next call."""
        if self._held.pop(key, None) is not None:
            self._retired.append(key)

    def agreed(
        self, compute: Callable[[], T], everywhere: Callable[[T], Any] | None = None
    ) -> list[Any]:
        """Return parts of what all processes compute, by rank; for functions of calls.

        Args:
            compute: this process's own part, which may fail and uses nothing that is used together.
            everywhere: what of it all get, anything that is made of tensors; nothing by default.

        Raises:
            _Failed: it failed in some process; in all of them.
        """
        answer: tuple[Exception | None, Any]
        try:
            value = compute()
            answer = None, None if everywhere is None else everywhere(value)
        except Exception as error:
            answer = _picklable(error), None
        with lost_ranks():
            answers = self.ranks.gathered(answer, self.device)
        for failed, _ in answers:
            if failed is not None:
                raise _Failed(failed)
        return [value for _, value in answers]

    def together(self, compute: Callable[[], object]) -> None:
        """Do something in all processes, outside of calls.

        Args:
            compute: as for :meth:`agreed`.

        Raises:
            Exception: it failed in some process; in all of them.
        """
        try:
            self.agreed(compute)
        except _Failed as failed:
            raise failed.error from None

    def collected(self, compute: Callable[[], T]) -> list[T]:
        """Return what all processes compute, by rank, in rank 0, and nothing in the others.

        Args:
            compute: as for :meth:`agreed`; what it returns is made of tensors.

        Raises:
            _Failed: it failed in some process; in all of them.
        """
        mine: list[Any] = []

        def apart(value: T) -> tuple[bytes, Any, list[Tensor]]:
            frame, flat = taken_apart(value)
            mine[:] = [value, flat]
            few = bytes_of(forms_of(flat)) <= SHORT // 2  # of no account that all get them
            return frame, [] if few else forms_of(flat), flat if few else []

        everyone = self.agreed(compute, apart)
        with lost_ranks():
            if not self.leads:
                _, forms, _ = everyone[self.ranks.rank]
                self.ranks.swapped({0: mine[1] if forms else []}, {}, self.device)
                return []
            awaited = {rank: forms for rank, (_, forms, _) in enumerate(everyone) if rank}
            found = self.ranks.swapped({}, awaited, self.device)
        others = (
            put_together(frame, few or found[rank])
            for rank, (frame, _, few) in enumerate(everyone)
            if rank
        )
        return [mine[0], *others]

    def summed(self, compute: Callable[[], Tensor]) -> Tensor:
        """Return the sum of the tensors of all processes, in each of them.

        Args:
            compute: as for :meth:`agreed`; of one shape everywhere.

        Raises:
            _Failed: it failed in some process; in all of them.
        """
        found: list[Tensor] = []
        self.agreed(compute, found.append)
        with lost_ranks():
            self.ranks.sum(found)
        return found[0]


def _picklable(error: Exception) -> Exception:
    """Return an error that can be sent."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # whatever pickling of it raises
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
