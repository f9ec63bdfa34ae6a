"""The wheel, installed alone and used: ``python -m tests.wheel``."""
