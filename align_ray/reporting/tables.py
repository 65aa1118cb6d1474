"""The console, and tables narrow enough for 80 columns."""

from rich import box
from rich.console import Console
from rich.table import Table

out = Console(markup=False, emoji=False)
"""Text is printed as it is: names, paths and templates of users hold brackets."""


def plain_table(title: str) -> Table:
    """A table narrow enough for 80 columns."""
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        min_width=min(79, len(title)),
    )
