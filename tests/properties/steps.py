"""A step of an optimiser at learning rate 1 is minus the direction that scores are of."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import nn

import evalkit
from tests.properties.laws import linearized
from tests.properties.structured import damping_of
from tests.support.strategies import Plan

OWN = {"ef": "EF", "ief": "IEF", "fgn": "FGN", "polyak": "Polyak", "sf": "SF"}
OTHERS = ("ief-tikhonov", "best-weights", "kfac", "ekfac:labels=exact", "diagonal", "block")
TOLERANCE = 1e-6


def check_steps(plan: Plan) -> None:
    """The step is the direction of the sum, with the factors that the mean loss brings."""
    plan = replace(plan, dtype="float64")
    for method in (*OWN, *OTHERS):
        batch = plan.make()
        lin, count = linearized(batch), plan.samples
        if not float(lin.gradient_norms.min()) > 1e-6 * float(lin.gradient_norms.max()):
            return  # what a fitted sample asks for is held to the exact numbers
        # Of the mean loss, the Gram matrix is N^2 times smaller, the Fisher matrix N times.
        damping = damping_of(lin)
        mean = damping / count**2 if method in OWN else damping / count
        settings = {"lr": 1.0, "damping": mean, "likelihood": batch.likelihood}
        parameters = list(batch.model.parameters())
        optimizer = (
            getattr(evalkit.optim, OWN[method])(parameters, **settings)
            if method in OWN
            else evalkit.optim.Preconditioned(parameters, method, **settings)
        )
        seed = optimizer.draw
        wanted = evalkit.update(method, lin, damping=damping, seed=seed)
        factors = {"ef": count, "ief": 1 / count, "sf": 1 / (count * mean)}
        wanted = factors.get(method, 1.0) * wanted
        gamma = evalkit.gamma(lin, wanted)  # before the parameters move
        trained = [p for p in parameters if p.requires_grad]
        before = nn.utils.parameters_to_vector(trained).detach().clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = optimizer.step(lambda b=batch: (b.model(b.inputs), b.targets))
            row = evalkit.score(
                *plan.make(), methods=method, damping=damping, seed=seed, dtype="float64"
            ).iloc[0]
        step = before - nn.utils.parameters_to_vector(trained).detach()
        where = f"{method} of {plan}"
        assert abs(float(loss) - float(lin.losses.mean())) <= 1e-9 * float(loss), where
        size = float(wanted.abs().max())
        rounding = 4 * torch.finfo(step.dtype).eps * float(before.abs().max() + size)
        assert float((step - wanted).abs().max()) <= TOLERANCE * size + rounding, where
        if row.error < TOLERANCE and rounding < TOLERANCE * size:
            assert abs(gamma / row.gamma - 1) <= 10 * TOLERANCE, where
