"""The version of evalkit; setup.cfg reads it from here."""

__version__ = "0.1.0"
