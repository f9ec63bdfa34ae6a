"""Damaged and hostile files for every reader: ``python -m tests.fuzz --inputs 10000 --seed 0``."""
