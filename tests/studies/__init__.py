"""Studies of optimizers: each is tuned, trained from several seeds, scored and compared.

``python -m tests.studies NAME`` runs one, and goes on with it where it was interrupted.
"""
