"""A study: every checkpoint of a trajectory scored on the same batches, into a RUN folder."""
