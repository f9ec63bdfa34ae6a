"""The one error that evalkit raises for bad input."""


class EvalkitError(ValueError):
    """Input that evalkit cannot use.

    The message is one sentence for the user: what was expected, what was found, and the next
    step. The command line prints it and exits with status 2.
    """


def shortened(text: str, most: int = 80) -> str:
    """Return what an error sentence quotes, its end cut off where it is longer than ``most``."""
    return text if len(text) <= most else f"{text[:most]}..."
