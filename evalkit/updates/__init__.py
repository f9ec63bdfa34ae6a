"""Approximations of the natural gradient: one file each, found by name everywhere.

Adding a file here, or calling :func:`method` from anywhere, makes a method known to ``score``, the
command line, the report and the tests.
"""

import importlib
import pkgutil

from evalkit.updates.calling import compute, update
from evalkit.updates.registry import method, methods
from evalkit.updates.types import CotangentUpdate, SolverReport, Update, VectorUpdate

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = [
    "CotangentUpdate",
    "SolverReport",
    "Update",
    "VectorUpdate",
    "compute",
    "method",
    "methods",
    "update",
]
