"""Packages that only parts of evalkit need."""

from __future__ import annotations

import importlib
from types import ModuleType

from evalkit.errors import EvalkitError

INSTALL = "pip install 'evalkit-fisher[{extra}]'"
"""What installs them beside an installed evalkit, from wherever that came."""


def required(name: str, purpose: str, extra: str = "hf") -> ModuleType:
    """Return a package that not every user has.

    Args:
        name: the name of the package.
        purpose: what it is needed for.
        extra: the extra of evalkit that has it.

    Raises:
        EvalkitError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing(f"the package {name}", purpose, error, extra) from error


def missing(package: str, purpose: str, error: ImportError, extra: str = "hf") -> EvalkitError:
    """Return the error that says what to install."""
    said = " ".join(str(error).split()).rstrip(" .:;")
    return EvalkitError(
        f"expected {package} for {purpose}, found that it cannot be imported ({said}); "
        f"run {INSTALL.format(extra=extra)}"
    )
