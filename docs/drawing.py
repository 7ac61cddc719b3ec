"""A graph without cycles as an SVG: a row a layer, arrows from top to bottom."""

from collections.abc import Mapping, Sequence
from html import escape

BOX, GAP, ROW, HEIGHT, MARGIN = 150, 34, 96, 52, 12  # pixels

_STYLE = """<style>
  text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1b2733; text-anchor: middle }
  .note { font-size: 11px; fill: #51606e }
  rect { fill: #eef4fb; stroke: #3c6fb0; stroke-width: 1.2 }
  path { fill: none; stroke: #7b8794; stroke-width: 1.3; marker-end: url(#tip) }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
  <polygon points="0,0.5 8,4 0,7.5" fill="#7b8794"/></marker></defs>"""

Graph = Mapping[str, set[str]]


def svg(graph: Graph, notes: Mapping[str, str], title: str) -> str:
    """The picture of `graph`, a set of lower nodes by upper node; arrows that follow from others are left out.

    Raises `ValueError` for a graph with a cycle.
    """
    arrows = reduced(graph)
    rows = _ordered(_layers(graph), arrows)
    width = max(len(row) for row in rows) * (BOX + GAP) - GAP + 2 * MARGIN
    height = len(rows) * ROW - (ROW - HEIGHT) + 2 * MARGIN
    place = {
        node: (width / 2 + (i - (len(row) - 1) / 2) * (BOX + GAP), MARGIN + j * ROW)
        for j, row in enumerate(rows)
        for i, node in enumerate(row)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>{escape(title)}</title>",
        f'{_STYLE}\n<rect width="100%" height="100%" style="fill: #ffffff; stroke: none"/>',
    ]
    for upper in sorted(arrows):
        for lower in sorted(arrows[upper]):
            (x1, y1), (x2, y2) = place[upper], place[lower]
            y1, bend = y1 + HEIGHT, (y2 - y1 - HEIGHT) / 2
            parts.append(f'<path d="M {x1:g} {y1:g} C {x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"/>')
    for node, (x, y) in sorted(place.items()):
        note = notes.get(node, "")
        parts.append(f'<rect x="{x - BOX / 2:g}" y="{y:g}" width="{BOX}" height="{HEIGHT}" rx="6"/>')
        parts.append(f'<text x="{x:g}" y="{y + (23 if note else 31):g}">{escape(node)}</text>')
        if note:
            parts.append(f'<text class="note" x="{x:g}" y="{y + 40:g}">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def reduced(graph: Graph) -> dict[str, set[str]]:
    """The graph without arrows that longer ways imply."""
    below = {node: _reach(graph, node, ()) for node in graph}
    return {
        node: {lower for lower in lowers if not any(lower in below.get(other, set()) for other in lowers - {lower})}
        for node, lowers in graph.items()
    }


def _reach(graph: Graph, node: str, way: tuple[str, ...]) -> set[str]:
    if node in way:
        raise ValueError(f"a cycle: {' -> '.join([*way[way.index(node) :], node])}")
    lowers = graph.get(node, set())
    return lowers.union(*(_reach(graph, lower, (*way, node)) for lower in lowers))


def _layers(graph: Graph) -> list[list[str]]:
    """The nodes by their longest way from the top."""
    nodes = sorted(set(graph).union(*graph.values()))
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for upper, lowers in graph.items():
            for lower in lowers:
                depth[lower] = max(depth[lower], depth[upper] + 1)
    return [[node for node in nodes if depth[node] == level] for level in range(max(depth.values()) + 1)]


def _ordered(rows: Sequence[Sequence[str]], graph: Graph) -> list[list[str]]:
    """Each row sorted by the middle of what points at its nodes, so that few arrows cross."""
    done = [list(rows[0])]
    place = {node: i - (len(rows[0]) - 1) / 2 for i, node in enumerate(rows[0])}
    for row in rows[1:]:
        middle = {}
        for node in row:
            above = [place[upper] for upper in graph if node in graph[upper] and upper in place]
            middle[node] = sum(above) / len(above) if above else 0.0
        done.append(sorted(row, key=lambda node: (middle[node], node)))
        place |= {node: i - (len(row) - 1) / 2 for i, node in enumerate(done[-1])}
    return done
