"""Kills at random moments: ``python -m tests.kills --alone 20 --ranks 20 --shards 10 --seed 0``."""
