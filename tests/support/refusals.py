"""The one sentence with which something is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import evalkit
from evalkit.cli import main


def refusal(action: Callable[[], Any]) -> str:
    """The one sentence with which ``action`` is refused."""
    with pytest.raises(evalkit.EvalkitError) as caught:
        action()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that must be refused, and return its one sentence."""
    status = main(arguments)
    error = capsys.readouterr().err
    assert status == 2
    lines = [line for line in error.splitlines() if line.startswith("evalkit: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in error
    return lines[0]
