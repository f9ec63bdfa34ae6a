"""Scores of a network of one hidden layer in ball arithmetic: the oracle above float64.

Numbers are balls of python-flint, a midpoint of as many bits as are asked for and a radius that
holds what rounding can have done, so that a result says how many of its digits are certain. The
formulas are those of the definitions, with K = J J^T, (N C, N C), written out for

    z_n = W2 phi(W1 x_n + b1) + b2.

Every update is d = J^T c with c in logit space, so that J d = K c, d^T g = r^T K c and

    gamma(d) = sqrt((K c)^T S (K c)) / |r^T K c|.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flint import arb, arb_mat, ctx
from torch import Tensor, nn

Rows = list[list[arb]]
"""Numbers by samples."""


class Unknown(ArithmeticError):
    """The bits that there are do not tell."""


def relu(a: arb) -> tuple[arb, arb]:
    """Return max(a, 0) and its derivative, that of torch at zero."""
    if a > 0:
        return a, arb(1)
    if a <= 0:
        return arb(0), arb(0)
    raise Unknown


def tanh(a: arb) -> tuple[arb, arb]:
    """Return tanh(a) and its derivative."""
    return a.tanh(), 1 / a.cosh() ** 2


def gelu(a: arb) -> tuple[arb, arb]:
    """Return a Phi(a) and its derivative."""
    below = (-a / arb(2).sqrt()).erfc() / 2
    return a * below, below + a * (-a * a / 2).exp() / (2 * arb.pi()).sqrt()


ACTIVATIONS = {nn.ReLU: relu, nn.Tanh: tanh, nn.GELU: gelu}


@dataclass(frozen=True)
class Batch:
    """What a score is made of.

    Attributes:
        kernel: K = J J^T, (N C, N C).
        residual: r_n by samples, N times C.
        sampled: the same for labels drawn from the model.
        curvature: v_n -> S_n v_n.
        losses: l_n, where they are known.
        floor_terms: r_n^T S_n^+ r_n, likewise.
    """

    kernel: arb_mat
    residual: Rows
    sampled: Rows
    curvature: Callable[[int, Sequence[arb]], list[arb]]
    losses: Sequence[arb] = ()
    floor_terms: Sequence[arb] = ()

    @property
    def samples(self) -> int:
        """N."""
        return len(self.residual)


@contextmanager
def bits(count: int) -> Iterator[None]:
    """Compute with that many bits."""
    before, ctx.prec = ctx.prec, count
    try:
        yield
    finally:
        ctx.prec = before


def matrix(values: Tensor) -> arb_mat:
    """Return a matrix of floating numbers as it is."""
    return arb_mat(values.detach().double().tolist())


def batch(model: nn.Sequential, x: Tensor, y: Tensor, likelihood: str, drawn: Tensor) -> Batch:
    """Return K, r and S of Sequential(Linear, activation, Linear, ...) on a batch.

    Args:
        model: the network.
        x: (N, D).
        y: labels or values.
        likelihood: name.
        drawn: labels drawn from the model; of values, how far they are from the logits.
    """
    first, activation, last = model[0], model[1], model[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    phi = ACTIVATIONS[type(activation)]
    inputs, weights = matrix(x), matrix(last.weight)
    samples, outputs = len(x), last.out_features
    before = _plus(inputs * matrix(first.weight).transpose(), first.bias)
    values = [[phi(before[n, k]) for k in range(before.ncols())] for n in range(samples)]
    hidden = arb_mat([[value for value, _ in row] for row in values])
    slopes = [[slope for _, slope in row] for row in values]
    z = _plus(hidden * weights.transpose(), last.bias)
    # One row of J in W1 x + b1 for each logit, before it meets x.
    back = arb_mat(
        [
            [weights[c, k] * slopes[n][k] for k in range(hidden.ncols())]
            for n in range(samples)
            for c in range(outputs)
        ]
    )
    inner, outer, below = (one * one.transpose() for one in (inputs, hidden, back))
    kernel = arb_mat(samples * outputs, samples * outputs)
    for i, j in itertools.product(range(samples * outputs), repeat=2):
        n, m = i // outputs, j // outputs
        entry = (inner[n, m] + 1) * below[i, j]
        kernel[i, j] = entry + outer[n, m] + 1 if i % outputs == j % outputs else entry
    logits = [[z[n, c] for c in range(outputs)] for n in range(samples)]
    residual, curvature = LIKELIHOODS[likelihood](logits)
    sampled = [[-a for a in row] for row in rows(drawn)]
    if likelihood != "gaussian":
        sampled = residual(drawn)
    return Batch(kernel, residual(y), sampled, curvature)


def rows(values: Tensor) -> Rows:
    return [[arb(value) for value in row] for row in values.double().view(len(values), -1).tolist()]


def _plus(product: arb_mat, bias: Tensor) -> arb_mat:
    rows = range(product.nrows())
    shift = [arb(value) for value in bias.detach().double().tolist()]
    return arb_mat([[product[n, k] + shift[k] for k in range(len(shift))] for n in rows])


Derivatives = tuple[Callable[[Tensor], Rows], Callable[[int, Sequence[arb]], list[arb]]]
"""The logit gradients for given targets, and v -> S_n v."""


def _categorical(z: Rows) -> Derivatives:
    odds = [[value.exp() for value in row] for row in z]
    p = [[value / sum(row, arb(0)) for value in row] for row in odds]

    def curvature(n: int, v: Sequence[arb]) -> list[arb]:
        mean = sum((a * b for a, b in zip(p[n], v, strict=True)), arb(0))
        return [a * (b - mean) for a, b in zip(p[n], v, strict=True)]

    def residual(y: Tensor) -> Rows:
        # 1 - p of a label is what the others have: the difference would take bits.
        return [
            [-sum(row[:c] + row[c + 1 :], arb(0)) if c == label else a for c, a in enumerate(row)]
            for row, label in zip(p, y.tolist(), strict=True)
        ]

    return residual, curvature


def _bernoulli(z: Rows) -> Derivatives:
    # Both by themselves: of logits of 1e4, the difference 1 - p takes more bits than there are.
    p, rest = ([[1 / (1 + (s * a).exp()) for a in row] for row in z] for s in (-1, 1))

    def residual(y: Tensor) -> Rows:
        return [
            [(1 - t) * a - t * b for a, b, t in zip(*sample, strict=True)]
            for sample in zip(p, rest, rows(y), strict=True)
        ]

    return residual, lambda n, v: [a * b * c for a, b, c in zip(p[n], rest[n], v, strict=True)]


def _gaussian(z: Rows) -> Derivatives:
    return lambda y: _difference(z, rows(y)), lambda _, v: list(v)


LIKELIHOODS = {"categorical": _categorical, "bernoulli": _bernoulli, "gaussian": _gaussian}


def gamma(one: Batch, c: Sequence[Sequence[arb]]) -> arb:
    """Return gamma of d = J^T c, c by samples."""
    pushed = _pushed(one, c)
    parts = [one.curvature(n, v) for n, v in enumerate(pushed)]
    square = dot(pushed, parts)
    return square.sqrt() / abs(dot(pushed, one.residual))


def _pushed(one: Batch, c: Sequence[Sequence[arb]]) -> Rows:
    """Return J J^T c."""
    column = one.kernel * arb_mat([[value] for row in c for value in row])
    outputs = len(c[0])
    return [[column[n * outputs + k, 0] for k in range(outputs)] for n in range(len(c))]


def dot(one: Sequence[Sequence[arb]], other: Sequence[Sequence[arb]]) -> arb:
    pairs = zip(itertools.chain(*one), itertools.chain(*other), strict=True)
    return sum((a * b for a, b in pairs), arb(0))


def _weights(
    one: Batch,
    rows: Sequence[Sequence[arb]],
    right: Sequence[arb],
    ridge: Sequence[arb],
) -> list[arb]:
    """Return (A + diag(ridge))^-1 b with A the Gram matrix of J_n^T rows_n."""
    outputs, samples = len(rows[0]), one.samples
    spread = arb_mat(samples * outputs, samples)
    for n, k in itertools.product(range(samples), range(outputs)):
        spread[n * outputs + k, n] = rows[n][k]
    gram = spread.transpose() * (one.kernel * spread)
    for n in range(samples):
        gram[n, n] += ridge[n]
    found = gram.solve(arb_mat([[value] for value in right]))
    return [found[n, 0] for n in range(samples)]


def _difference(one: Sequence[Sequence[arb]], other: Sequence[Sequence[arb]]) -> Rows:
    return [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


def _scaled(rows: Sequence[Sequence[arb]], weights: Sequence[arb]) -> Rows:
    return [[a * w for a in row] for row, w in zip(rows, weights, strict=True)]


def cotangents(one: Batch, method: str, damping: arb) -> Rows:
    """Return c of a method; the sampled Fisher has one label for each sample."""
    r, drawn, samples = one.residual, one.sampled, one.samples
    squares = [dot([row], [row]) for row in r]
    same = [damping] * samples
    if method == "sgd":
        return r
    if method == "ef":
        return _scaled(r, _weights(one, r, [arb(1)] * samples, same))
    if method == "ief":
        return _scaled(r, _weights(one, r, squares, same))
    if method == "ief-tikhonov":
        return _scaled(r, _tikhonov(one, squares, damping))
    if method == "fgn":
        return _scaled(r, _weights(one, r, one.floor_terms, same))
    if method == "fgn-tikhonov":
        return _scaled(r, _tikhonov(one, one.floor_terms, damping))
    if method == "polyak":
        return _scaled(r, _weights(one, r, one.losses, same))
    if method == "sf":
        along = [dot([a], [b]) for a, b in zip(_pushed(one, r), drawn, strict=True)]
        taken = _scaled(drawn, _weights(one, drawn, along, same))
        return _difference(r, taken)
    assert method == "ngd"
    return _natural(one, damping)


def _tikhonov(one: Batch, scales: Sequence[arb], damping: arb) -> list[arb]:
    """Return (A + lambda diag(h))^-1 h; samples without a gradient take no part."""
    ridge = [damping * (arb(1) if h == 0 else h) for h in scales]
    return _weights(one, one.residual, scales, ridge)


def _natural(one: Batch, damping: arb) -> Rows:
    """Return c with (S K + lambda I) c = r, so that J^T c = (F + lambda I)^-1 g."""
    outputs, size = len(one.residual[0]), one.kernel.nrows()
    system = arb_mat(size, size)
    for n, j in itertools.product(range(one.samples), range(size)):
        column = [one.kernel[n * outputs + k, j] for k in range(outputs)]
        for k, value in enumerate(one.curvature(n, column)):
            system[n * outputs + k, j] = value
    for i in range(size):
        system[i, i] += damping
    found = system.solve(arb_mat([[value] for row in one.residual for value in row]))
    return [[found[n * outputs + k, 0] for k in range(outputs)] for n in range(one.samples)]
