"""Tables on the terminal."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_table(table: Table) -> None:
    """Print a table, wider than the window rather than cut off."""
    endless = Console(width=10_000)
    needed = Measurement.get(endless, endless.options, table).maximum
    Console(width=max(Console().width, needed)).print(table)
