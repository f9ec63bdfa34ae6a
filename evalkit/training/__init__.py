"""Training of a task, which makes a trajectory of checkpoints."""
