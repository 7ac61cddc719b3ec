"""Text between `<!-- name -->` and `<!-- end -->` of a page, written by a script."""

from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def fill(text: str, blocks: dict[str, str]) -> str:
    """The page with these blocks in place of what it held; raises `ValueError` for a block that it lacks."""
    for name, block in blocks.items():
        start, found = f"<!-- {name} -->\n", text.count(f"<!-- {name} -->\n")
        if found != 1:
            raise ValueError(f"the page must hold <!-- {name} --> once, found {found}")
        before, _, rest = text.partition(start)
        text = f"{before}{start}{block}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def table(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *body))
