"""The one error that evalkit raises for bad input."""


class EvalkitError(ValueError):
    """Input that evalkit cannot use.

    The message is one sentence for the user: what was expected, what was found, and the next
    step. Arguments stand in it as in Python, between backquotes, with a value or without; the
    command line puts its options in their place, prints it and exits with status 2.
    """


class TooLittleMemoryError(EvalkitError):
    """Memory ran out: the same batch may fit a few samples at a time."""


def shortened(text: str, most: int = 80) -> str:
    """Return what an error sentence quotes, its end cut off where it is longer than ``most``."""
    return text if len(text) <= most else f"{text[:most]}..."


def reason(error: BaseException) -> str:
    """Return what an error sentence tells of another library's error: its kind and first line."""
    first = (str(error).strip() or "no message").splitlines()[0].rstrip(" .:;")
    return f"{type(error).__name__}: {shortened(first, 200)}"


_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED")
"""What torch's allocators and the libraries of a GPU say in a plain RuntimeError."""


def memory_sentence(error: BaseException) -> str | None:
    """Return the sentence for an error that says that memory ran out, None for any other."""
    name = type(error).__name__
    told = isinstance(error, RuntimeError) and any(part in str(error) for part in _MEMORY)
    if name != "OutOfMemoryError" and not isinstance(error, MemoryError) and not told:
        return None
    return (
        f"expected a batch that fits into memory, found {reason(error)}; evaluate fewer samples at "
        "a time (`micro_batch_size`), or pass smaller batches"
    )
