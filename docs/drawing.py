"""A graph without cycles as an SVG: a layer a column, arrows from left to right."""

from collections.abc import Mapping
from html import escape
from itertools import pairwise

WIDTH, HEIGHT, LANE = 146, 46, 16  # pixels of a box, and of the lane that a long arrow takes past boxes
BETWEEN, ABOVE, MARGIN = 52, 18, 12  # pixels between columns, between boxes of a column, and around the picture
SWEEPS = 8  # orders of the columns that are tried

_STYLE = """<style>
  text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1b2733; text-anchor: middle }
  .note { font-size: 11px; fill: #51606e }
  .box { fill: #eef4fb; stroke: #3c6fb0; stroke-width: 1.2 }
  path { fill: none; stroke: #7b8794; stroke-width: 1.3 }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
  <polygon points="0,0.5 8,4 0,7.5" fill="#7b8794"/></marker></defs>"""

Graph = Mapping[str, set[str]]
Node = tuple[str, str]  # a box is (name, ""); a lane is the arrow that takes it


def svg(graph: Graph, notes: Mapping[str, str], title: str) -> str:
    """The picture of `graph`, a set of later nodes by node; arrows that longer ways imply are left out.

    Raises `ValueError` for a graph with a cycle.
    """
    arrows = reduced(graph)
    column = _columns(graph)
    ways = {
        (start, end): [(start, ""), *((start, end) for _ in range(column[start] + 1, column[end])), (end, "")]
        for start, ends in arrows.items()
        for end in ends
    }
    columns: list[list[Node]] = [[] for _ in range(max(column.values()) + 1)]
    for name in sorted(column):
        columns[column[name]].append((name, ""))
    for _, way in sorted(ways.items()):
        for place, lane in enumerate(way[1:-1], start=1):
            columns[column[way[0][0]] + place].append(lane)
    height = max(_height(nodes) for nodes in columns) + 2 * MARGIN
    middle = _middles(columns, list(ways.values()), {name: column[name] for name in column}, height)
    width = len(columns) * (WIDTH + BETWEEN) - BETWEEN + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>{escape(title)}</title>",
        f'{_STYLE}\n<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for (start, _), way in sorted(ways.items()):
        line: list[str] = []
        for step, (here, there) in enumerate(pairwise(way), start=column[start]):
            x1, y1 = _left(step) + WIDTH, middle[step, here]
            x2, y2 = _left(step + 1), middle[step + 1, there]
            bend = (x1 + x2) / 2
            line.append(f"{'L' if line else 'M'} {x1} {y1:g} C {bend:g} {y1:g} {bend:g} {y2:g} {x2} {y2:g}")
        parts.append(f'<path d="{" ".join(line)}" marker-end="url(#tip)"/>')
    for name in sorted(column):
        x, y, note = _left(column[name]), middle[column[name], (name, "")], notes.get(name, "")
        parts.append(f'<rect class="box" x="{x}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        parts.append(f'<text x="{x + WIDTH / 2:g}" y="{y + (-2 if note else 5):g}">{escape(name)}</text>')
        if note:
            parts.append(f'<text class="note" x="{x + WIDTH / 2:g}" y="{y + 15:g}">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def reduced(graph: Graph) -> dict[str, set[str]]:
    """The graph without the arrows that longer ways imply."""
    later = {node: _reach(graph, node, ()) for node in graph}
    return {
        node: {end for end in ends if not any(end in later.get(other, set()) for other in ends - {end})}
        for node, ends in graph.items()
    }


def _reach(graph: Graph, node: str, way: tuple[str, ...]) -> set[str]:
    if node in way:
        raise ValueError(f"a cycle: {' -> '.join([*way[way.index(node) :], node])}")
    ends = graph.get(node, set())
    return ends.union(*(_reach(graph, end, (*way, node)) for end in ends))


def _columns(graph: Graph) -> dict[str, int]:
    """The column of each node: its longest way from the left."""
    found = dict.fromkeys(sorted(set(graph).union(*graph.values())), 0)
    for _ in found:
        for node, ends in graph.items():
            for end in ends:
                found[end] = max(found[end], found[node] + 1)
    return found


def _left(column: int) -> int:
    return MARGIN + column * (WIDTH + BETWEEN)


def _height(nodes: list[Node]) -> int:
    return sum((LANE if arrow else HEIGHT) + ABOVE for _, arrow in nodes) - ABOVE


def _middles(
    columns: list[list[Node]], ways: list[list[Node]], column: Mapping[str, int], height: int
) -> dict[tuple[int, Node], float]:
    """The vertical middle of each node, by column and node, in the order with the shortest arrows that was found."""
    near: dict[tuple[int, Node], list[tuple[int, Node]]] = {}
    for way in ways:
        for step, (here, there) in enumerate(pairwise(way), start=column[way[0][0]]):
            near.setdefault((step, here), []).append((step + 1, there))
            near.setdefault((step + 1, there), []).append((step, here))

    def placed() -> dict[tuple[int, Node], float]:
        middle = {}
        for step, nodes in enumerate(columns):
            y = (height - _height(nodes)) / 2
            for node in nodes:
                high = LANE if node[1] else HEIGHT
                middle[step, node] = y + high / 2
                y += high + ABOVE
        return middle

    def length(middle: dict[tuple[int, Node], float]) -> float:
        return sum(abs(middle[node] - middle[other]) for node, others in near.items() for other in others)

    best = placed()
    for sweep in range(SWEEPS):
        order = range(len(columns)) if sweep % 2 == 0 else reversed(range(len(columns)))
        for step in order:
            middle = placed()
            ranks = {
                node: sum(middle[other] for other in others) / len(others)
                for node in columns[step]
                if (others := near.get((step, node), [(step, node)]))
            }
            columns[step].sort(key=lambda node, ranks=ranks: (ranks[node], node))  # type: ignore[misc]
        best = min(best, placed(), key=length)
    return best
