"""What every test starts from."""

from __future__ import annotations

import pytest

from evalkit.updates import registry


@pytest.fixture(autouse=True)
def methods_of_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that a test registers end with it."""
    monkeypatch.setattr(registry._METHODS, "_entries", dict(registry._METHODS._entries))
