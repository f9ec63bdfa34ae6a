"""The command line: one file per command, loaded when it is called."""

from evalkit.cli.main import main

__all__ = ["main"]
