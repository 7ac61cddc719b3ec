"""Writes the tables of README.md from `bench.json` and `quality.json`; what was not run says so."""

import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core import files

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def speed(bench: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "what", "against", "to reach", "seen"
    for part in ("epoch", "search", "pruning", "scaling", "repro"):
        for row in bench.get(part, [{"what": part, "against": "", "reach": "", "seen": "not run"}]):
            yield row["what"], row["against"], row["reach"], row["seen"]


def stages(bench: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "stage", "imports", "tracking", "computing"
    if "repro" not in bench:
        yield "not run", "", "", ""
    for row in bench.get("repro", []):
        for stage, spent in row.get("stages", {}).items():
            total = sum(spent[part] for part in ("imports", "tracking", "compute"))
            yield (
                stage,
                *(
                    f"{spent[part]:.1f} s, {100 * spent[part] / total:.0f} %"
                    for part in ("imports", "tracking", "compute")
                ),
            )


def large(quality: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "", "accuracy", "sd", "seeds", "seconds, 2 threads"
    for row in quality.get("flights", []):
        sd = f"{row['sd']:.4f}" if len(row["scores"]) > 1 else ""
        yield row["name"], f"{row['accuracy']:.4f}", sd, str(len(row["scores"])), f"{row['seconds']:.0f}"


def small(quality: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "", "metric", "ours, default", "MLP", "HistGradientBoosting", "standard errors behind the better one"
    for row in quality.get("small", []):
        means = [
            f"{statistics.mean(s):.4f} ± {statistics.stdev(s) / math.sqrt(len(s)):.4f}" for s in row["scores"].values()
        ]
        yield row["name"], row["metric"], *means, f"{row['behind']:+.1f}"


def table(rows: Iterator[tuple[str, ...]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *body))


def main() -> None:
    bench, quality = (json.loads((HERE / name).read_text()) for name in ("bench.json", "quality.json"))
    tables = {
        "benchtable": speed(bench),
        "stagetable": stages(bench),
        "qualitytable": large(quality),
        "smalltable": small(quality),
    }
    text = README.read_text(encoding="utf-8")
    for name, rows in tables.items():
        marked = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        text, found = marked.subn((table(rows) + "\n").replace("\\", r"\\"), text)
        assert found == 1, name
    files.write_text(README, text)


if __name__ == "__main__":
    main()
