"""Write the tables of docs/benchmarks.md and the summary in README.md from `bench.json` and `quality.json`."""

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.pages import ROOT, fill, table
from pipeline.core import files

HERE = Path(__file__).parent
OURS = "Tabline"
Rows = Iterator[tuple[str, ...]]


def speed(bench: dict[str, Any]) -> Rows:
    yield "measured", "compared with", "result"
    for part in ("epoch", "search", "pruning", "scaling", "repro"):
        for row in bench.get(part, [{"what": part, "against": "", "seen": "not run"}]):
            yield row["what"], row["against"], row["seen"]


def stages(bench: dict[str, Any]) -> Rows:
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


def large(quality: dict[str, Any]) -> Rows:
    yield "model", "accuracy", "sd", "seeds", "seconds, 2 threads"
    for row in quality.get("flights", []):
        sd = f"{row['sd']:.4f}" if len(row["scores"]) > 1 else ""
        yield _named(row["name"]), f"{row['accuracy']:.4f}", sd, str(len(row["scores"])), f"{row['seconds']:.0f}"


def small(quality: dict[str, Any]) -> Rows:
    yield "table", "metric", f"{OURS}, default", "MLP", "HistGradientBoosting", "standard errors behind the better one"
    for row in quality.get("small", []):
        means = [
            f"{statistics.mean(s):.4f} ± {statistics.stdev(s) / math.sqrt(len(s)):.4f}" for s in row["scores"].values()
        ]
        yield row["name"], row["metric"], *means, f"{row['behind']:+.1f}"


def summary(bench: dict[str, Any], quality: dict[str, Any]) -> Rows:
    """Speed and quality on a few lines."""
    yield "measured", OURS, "others"
    others = ", ".join(f"{row['against']} {row['ratio']:.1f}" for row in bench.get("epoch", [])[1:])
    yield "relative time of an epoch, flights, one thread", "1", others or "not run"
    for row in bench.get("search", [])[1:]:
        yield f"relative time of a {row['what']}", "1", f"{row['against']} {row['ratio']:.0f}"
    flights = {row["name"]: row for row in quality.get("flights", [])}
    if flights:
        ours, *rest = flights.values()
        named = {row["name"].replace(", ", " (") + ")" * (", " in row["name"]): row for row in rest}
        listed = ", ".join(f"{name} {row['accuracy']:.3f}" for name, row in named.items() if "ours" not in name)
        yield "test accuracy, flights, nine columns", f"{ours['accuracy']:.3f}", listed
    for row in quality.get("small", []):
        ours, *rest = ((name, statistics.mean(scores)) for name, scores in row["scores"].items())
        listed = ", ".join(f"{name} {mean:.3f}" for name, mean in rest)
        yield f"{row['metric']} on {row['name']}", f"{ours[1]:.3f}", listed


def main() -> None:
    bench, quality = (json.loads((HERE / name).read_text()) for name in ("bench.json", "quality.json"))
    blocks = {
        "docs/benchmarks.md": {
            "speed": table(speed(bench)),
            "stages": table(stages(bench)),
            "flights": table(large(quality)),
            "small": table(small(quality)),
        },
        "README.md": {"summary": table(summary(bench, quality))},
    }
    for path, tables in blocks.items():
        files.write_text(ROOT / path, fill((ROOT / path).read_text(encoding="utf-8"), tables))


def _named(name: str) -> str:
    return name.replace("ours", OURS, 1)


if __name__ == "__main__":
    main()
