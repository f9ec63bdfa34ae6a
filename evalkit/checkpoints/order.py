"""The order of training that the names of checkpoints tell: the right one, or none.

A number counts by the word before it. ``epoch``, ``step`` and ``iter`` win over every other; then
comes ``checkpoint``; without such a word the names must be alike but for one whole number. What
that leaves open is refused rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.counts import counted
from evalkit.errors import EvalkitError

_EPOCH, _CHECKPOINT = "epoch", "checkpoint"
# Words that tell how far training was; the short ones count only where a word begins.
_WORDS = {
    _EPOCH: r"(?:epochs?|(?<![a-z])ep)",
    "step": r"steps?",
    "iter": r"(?:iter(?:ation)?s?|(?<![a-z])itr?)",
    "update": r"(?<![a-z])(?:num_?)?updates?",
}
_LATER_WORDS = {_CHECKPOINT: r"(?:checkpoint|(?<![a-z])ckpt)"}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_COUNT = r"(\d+(?:\.\d+)?)([kmb]?)(?![a-z0-9]|\.\d)"
_BETWEEN = r"[^0-9a-z.]{0,3}"
# Words that follow a number without a space, as in 'epoch1step500' and '100steps'.
_GLUED = re.compile(r"(\d[kmb]?)(?=epoch|step|iter|global|update)")

_DATE = r"(?:19|20)\d\d(?P<gap>[-_.]?)(?:0[1-9]|1[0-2])(?P=gap)(?:0[1-9]|[12]\d|3[01])(?!\d)"
_NUMBER = re.compile(
    rf"(?P<date>(?<!\d){_DATE}|(?<!\d)(?:1[4-9]\d{{8}}|20\d{{10}}(?:\d\d)?)(?!\d))"
    r"|(?P<decimal>\d+\.\d+(?![kmb](?![a-z0-9]))(?:e[-+]?\d+)?|\d+e[-+]?\d+)"
    r"|(?P<count>\d+(?:\.\d+)?)(?P<unit>[kmb]?)(?![a-z0-9])"
    r"|(?P<other>\d+)"
)
_TIME = re.compile(r"(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?")
# What a number after these words measures is not how far training was: a metric, ...
_METRIC_WORDS = """
acc accuracy auc auroc ap map iou miou dice f loss nll val valid validation train test err error
score metric ppl perplexity bleu rouge cer wer mae mse rmse psnr ssim fid top
"""
# ... or a setting, which differs between runs rather than along one.
_SETTING_WORDS = """
lr wd seed fold rank run trial version v exp experiment dim width depth layers size bs batch
batchsize
"""
_METRICS = frozenset(_METRIC_WORDS.split())
_NO_STEPS = _METRICS | frozenset(_SETTING_WORDS.split())
_ASIDE = re.compile(
    r"(?:^|[^a-z]|model|checkpoint|ckpt)"
    r"(?:best|last|latest|final|swa|ema|averaged|interrupted)(?![a-z])"
    r"|^(?:best|last|latest|final)model(?![a-z])"
)
_LARGEST = 2**63
_SHOWN = 12


@dataclass(frozen=True)
class Order:
    """How far training was at each checkpoint.

    Args:
        steps: one a checkpoint, in the order in which the checkpoints were given.
        told: where the steps come from, to be said to the user.
        spaced: whether the steps are only positions, so that the checkpoints are equally spaced.
    """

    steps: tuple[int, ...]
    told: str
    spaced: bool = False


@dataclass(frozen=True)
class _Number:
    """A number in a name: its kind (date, decimal, count or other), its digits and its value."""

    kind: str
    digits: str
    value: int
    word: str


def is_aside(name: str) -> bool:
    """Return whether a name says which checkpoint it is rather than when: ``last``, ``best``."""
    return _ASIDE.search(name.lower()) is not None


def is_of_second_run(name: str) -> bool:
    """Return whether Lightning wrote an aside because an earlier run had left one: ``last-v1``."""
    return is_aside(name) and re.search(r"-v\d+$", name) is not None


def has_number(name: str) -> bool:
    """Return whether any number in a name could tell a step."""
    return any(number.kind in ("count", "date") for number in _numbers(name))


def named_step(name: str) -> int | None:
    """Return the step in the name of a single checkpoint, None where it tells none."""
    for words in (_WORDS, _LATER_WORDS):
        values = {word: value for word in words if (value := _after(name, words[word])) is not None}
        if values:
            found = next((values[word] for word in values if word != _EPOCH), values.get(_EPOCH))
            return found if found is not None and 0 <= found < _LARGEST else None
    counts = [n for n in _numbers(name) if n.kind == "count" and n.word not in _NO_STEPS]
    return counts[0].value if len(counts) == 1 and counts[0].value < _LARGEST else None


def order_by_names(names: Sequence[str], folder: object) -> Order:
    """Return the order of checkpoints by their names.

    Args:
        names: at least two, without endings.
        folder: where they lie, for the error sentence.

    Raises:
        EvalkitError: the names do not tell one order.
    """
    for words in (_WORDS, _LATER_WORDS):
        found = {word: [_after(name, pattern) for name in names] for word, pattern in words.items()}
        shared = {word: values for word, values in found.items() if None not in values}
        if shared:
            return _checked(_by_words(shared, folder), names, folder)
        if any(value is not None for values in found.values() for value in values):
            break
    numbered = [has_number(name) for name in names]
    if any(numbered) and not all(numbered):
        bare = names[numbered.index(False)]
        raise _undecided(folder, f"'{bare}' without one", "a step number in the name of every")
    return _checked(_by_bare_numbers(names, folder), names, folder)


def equally_spaced(count: int, told: str) -> Order:
    """Return the order in which ``count`` checkpoints are given already."""
    return Order(tuple(range(count)), told, spaced=True)


def told(names: Sequence[str], source: str) -> str:
    """Return the sentence that tells an order.

    Args:
        names: in that order.
        source: where it comes from.
    """
    half = _SHOWN // 2
    shown = list(names) if len(names) <= _SHOWN else [*names[:half], "...", *names[-half:]]
    return f"{counted(len(names), 'checkpoint')}, {source}: {', '.join(shown)}"


def _by_words(shared: dict[str, list[int | None]], folder: object) -> Order:
    """Return the order by the numbers after the words that every name has."""
    for word, values in shared.items():
        if -1 in values:
            raise _undecided(folder, f"more or less than one whole number after '{word}'")
    whole = {word: [value or 0 for value in values] for word, values in shared.items()}
    varying = {word: values for word, values in whole.items() if len(set(values)) > 1}
    varying = varying or dict([next(iter(whole.items()))])
    said = " and ".join(f"'{word}'" for word in varying)
    epochs = varying.pop(_EPOCH, None)
    steps = next(iter(varying.values()), None)
    if any(_ranks(values) != _ranks(steps or []) for values in varying.values()):
        raise _undecided(folder, f"numbers after {said} that disagree")
    if epochs is None or steps is None:
        return Order(tuple(epochs or steps or []), f"by the number after {said}")
    pairs = list(zip(epochs, steps, strict=True))
    if _ranks(steps) == _ranks(pairs):
        return Order(tuple(steps), f"by the number after '{next(iter(varying))}'")
    # Steps that begin again with every epoch tell an order, but no time.
    ranks = _ranks(pairs)
    return Order(tuple(ranks), f"by the numbers after {said}, equally spaced", spaced=True)


def _by_bare_numbers(names: Sequence[str], folder: object) -> Order:
    """Return the order of names that are alike but for one whole number, or a date and time."""
    if len({_NUMBER.sub("#", name.lower()) for name in names}) > 1:
        raise _undecided(folder, "names that differ in more than a number")
    columns = list(zip(*map(_numbers, names), strict=True))
    varying = [
        (position, column)
        for position, column in enumerate(columns)
        if len({number.digits for number in column}) > 1
        and not any(number.kind == "decimal" for number in column)
    ]
    moments = [column for position, column in varying if _are_times(columns, position)]
    counts = [column for position, column in varying if not _are_times(columns, position)]
    counts = [column for column in counts if column[0].word not in _METRICS] or counts
    times = [tuple(number.value for number in row) for row in zip(*moments, strict=True)]
    if not counts and times:
        return Order(tuple(_ranks(times)), "by the time in the name, equally spaced", spaced=True)
    if not counts:
        raise _undecided(folder, "no whole number in which they differ")
    if len(counts) > 1:
        raise _undecided(folder, "several numbers in which they differ")
    values, word = [number.value for number in counts[0]], counts[0][0].word
    if word in _NO_STEPS:
        raise _undecided(folder, f"only the number after '{word}'")
    if any(number.kind != "count" for number in counts[0]):
        raise _undecided(folder, f"a number with other units, as in '{names[0]}'")
    if times and _ranks(values) != _ranks(times):
        raise _undecided(folder, "a time and a number that disagree")
    return Order(tuple(values), "by the number in the name")


def _after(name: str, word: str) -> int | None:
    """Return the whole number after a word, or before it where none is after it.

    None stands for no number, -1 for several or one that is not whole.
    """
    lower = _GLUED.sub(r"\1_", name.lower())
    found = re.findall(rf"{word}{_BETWEEN}{_COUNT}", lower)
    if not found and re.search(rf"{word}{_BETWEEN}\d", lower):
        return -1
    if not found:
        found = re.findall(
            rf"(?<![\d.a-z])(\d+(?:\.\d+)?)([kmb]?)[^0-9a-z.]?{word}(?![a-z])", lower
        )
    values = {_value(digits, unit) for digits, unit in found}
    if not values:
        return None
    return values.pop() if len(values) == 1 else -1


def _value(digits: str, unit: str) -> int:
    """Return a number with its unit, -1 where it is not whole."""
    whole, _, fraction = digits.partition(".")
    factor = _UNITS[unit]
    scaled = int(whole) * factor * 10 ** len(fraction) + int(fraction or 0) * factor
    value, rest = divmod(scaled, 10 ** len(fraction))
    return -1 if rest or (fraction and not unit) else value


def _numbers(name: str) -> list[_Number]:
    found, lower = [], name.lower()
    for match in _NUMBER.finditer(lower):
        kind = next(kind for kind in ("date", "decimal", "count", "other") if match[kind])
        digits = match[kind]
        value = 0
        if kind == "date":
            value = int(re.sub(r"\D", "", digits))
        elif kind == "count":
            value = _value(digits, match["unit"])
            kind = "other" if value < 0 else kind
        word = re.search(r"([a-z]*)[^0-9a-z]*$", lower[: match.start()])
        found.append(_Number(kind, match[0], value, word[1] if word else ""))
    return found


def _are_times(columns: list[tuple[_Number, ...]], position: int) -> bool:
    """Return whether the numbers at a position are dates, or times of the day after a date."""
    if all(number.kind == "date" for number in columns[position]):
        return True
    before = columns[position - 1] if position else ()
    dated = bool(before) and all(number.kind == "date" for number in before)
    return dated and all(_TIME.fullmatch(number.digits) for number in columns[position])


def _ranks(values: Sequence[Any]) -> list[int]:
    """Return the position of every value among the different ones."""
    places = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [places[value] for value in values]


def _checked(order: Order, names: Sequence[str], folder: object) -> Order:
    """Refuse steps that two checkpoints share, or that are too large."""
    seen: dict[int, str] = {}
    for step, name in sorted(zip(order.steps, names, strict=True)):
        if step >= _LARGEST:
            raise EvalkitError(
                f"expected a step number below 2^63 in the name of a checkpoint, found '{name}' in "
                f"'{folder}'; rename it"
            )
        if step in seen:
            raise EvalkitError(
                f"expected one checkpoint for each step and name in '{folder}', found "
                f"'{seen[step]}' and '{name}'; remove or rename one"
            )
        seen[step] = name
    return order


def _undecided(
    folder: object, found: str, expected: str = "one order in the names of the"
) -> EvalkitError:
    checkpoints = "checkpoint" if expected.endswith("every") else "checkpoints"
    return EvalkitError(
        f"expected {expected} {checkpoints} in '{folder}', found {found}; rename them, as in "
        "'step-100', or pass `order`: name, time, or the names in order"
    )
