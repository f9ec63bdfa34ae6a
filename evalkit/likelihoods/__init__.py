"""Likelihoods: what the outputs of a model mean.

Each likelihood is one file with one class of pure functions; :func:`get` finds it by name.
"""

from evalkit.likelihoods.base import IGNORED_LABEL, Likelihood, check_labels
from evalkit.likelihoods.bernoulli import Bernoulli
from evalkit.likelihoods.categorical import Categorical
from evalkit.likelihoods.gaussian import Gaussian
from evalkit.registry import Registry

__all__ = [
    "IGNORED_LABEL",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "check_labels",
    "get",
    "names",
    "register",
]

_REGISTRY: Registry[Likelihood] = Registry("likelihood")


def register(likelihood: Likelihood) -> None:
    """Make a likelihood known by its name, to scores, tasks and optimisers.

    Raises:
        EvalkitError: the name is taken.
    """
    _REGISTRY.add(likelihood.name, likelihood)


for _likelihood in (Categorical(), Bernoulli(), Gaussian()):
    register(_likelihood)

get = _REGISTRY.get
names = _REGISTRY.names
