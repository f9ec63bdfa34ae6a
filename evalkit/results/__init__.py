"""Numbers from the tables of a run: means, pairs of methods, sweeps, and their marks."""
