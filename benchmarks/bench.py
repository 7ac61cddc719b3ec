"""Speed compared with other libraries on the same job: a table, `benchmarks/bench.json` and `docs/images/speed.png`.

Every comparison is interleaved in one run on one thread; what counts are medians of ratios. See docs/benchmarks.md.
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks import competitors
from benchmarks.competitors import TEXTBOOK, timed
from benchmarks.tables import Table, configured, flights, synthetic
from pipeline.core import config, files
from pipeline.core.settings import Config
from pipeline.stages.search.study import SearchResult, search
from pipeline.stages.search.trials import Work
from pipeline.stages.search.workers import workers
from pipeline.training.loop import fit, new_members

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs/images/speed.png"
REPEATS = 5
SPACE = {
    "train.lr": {"low": 1e-2, "high": 3e-1, "log": True},
    "train.momentum": {"low": 0.85, "high": 0.99},
    "model.dropout": {"low": 0.0, "high": 0.3},
}
Row = dict[str, Any]


def ours(table: Table, settings: Config) -> None:
    """One epoch as the stage train does it: with validation, metrics, the best weights kept."""
    members = new_members(settings, table.splits["train"], table.schema)
    fit(members, table.splits["train"], table.splits["val"], table.schema.target)


def one_epoch() -> list[Row]:
    hidden, batch_size = (128, 64), 512
    table = flights(**TEXTBOOK, train__epochs=1, train__batch_size=batch_size, model__hidden=list(hidden))
    x, y = table.one_hot("train")
    x_numpy, y_numpy = x.numpy(), y.numpy()
    contestants: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(table, table.config),
        "bare loop over the same tensors": lambda: competitors.bare(table, table.config),
        "textbook loop with DataLoader": lambda: competitors.textbook(x, y, hidden, batch_size),
        "skorch": lambda: competitors.skorch_epoch(x, y, hidden, batch_size),
        "scikit-learn MLPClassifier": lambda: competitors.sklearn_epoch(x_numpy, y_numpy, hidden, batch_size),
        "Lightning": lambda: competitors.lightning_epoch(x, y, hidden, batch_size),
    }
    with threadpool_limits(1):  # NumPy's threads too
        times = interleaved(contestants)
    rows = []
    for name in list(contestants)[1:]:
        ratio = statistics.median(other / mine for other, mine in zip(times[name], times["ours"], strict=True))
        what = f"one epoch of flights, {len(x):,} rows, hidden layers 128-64, one thread"
        rows.append({"what": what, "against": name, "seen": f"{ratio:.1f}x as fast", "ratio": ratio})
    return rows


def interleaved(contestants: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(REPEATS + 1):
        for name, work in contestants.items():
            seconds = timed(work)
            if repeat:  # the first round warms up
                times[name].append(seconds)
    return times


def our_search(table: Table, settings: Config) -> SearchResult:
    work = Work.of(table.splits["train"], table.splits["val"], table.schema, settings)
    with workers(work, settings.search.workers) as run:
        return search(settings, run)


def searching(table: Table, hidden: tuple[int, ...], batch_size: int, epochs: int, timed_trials: int, what: str) -> Row:
    """64 trials of ours, against as many of the textbook loop, of which `timed_trials` are run and scaled up."""
    n_trials = 64
    unpruned = config.replaced(table.config, {"search.reduction": None})
    ratios, whole, alone, seconds = [], [], [], []
    for repeat in range(REPEATS):
        theirs = competitors.textbook_search(table, hidden, batch_size, epochs, timed_trials) * n_trials / timed_trials
        seconds.append(timed(lambda: our_search(table, table.config)))
        ratios.append(theirs / seconds[-1])
        whole.append(theirs / timed(lambda: our_search(table, unpruned)))
        one = config.replaced(unpruned, {"search.workers": 1})
        if repeat < 2:  # minutes each
            alone.append(theirs / timed(lambda: our_search(table, one)))  # noqa: B023
    return {
        "what": what,
        "against": "Optuna over the textbook loop in one process",
        "seen": f"{statistics.median(whole):.0f}x as fast; {statistics.median(alone):.0f}x in one process; {statistics.median(ratios):.0f}x with pruning",
        "ratio": statistics.median(whole),
        "one process": statistics.median(alone),
        "pruned": statistics.median(ratios),
        "seconds": statistics.median(seconds),
    }


def searches() -> list[Row]:
    common = {**TEXTBOOK, "search.space": SPACE, "search__n_trials": 64, "search__epochs": 6, "train__epochs": 6}
    large = flights(**common, train__batch_size=512, model__hidden=[128, 64])
    small = synthetic(20_000, **common, train__batch_size=64, model__hidden=[32, 16])
    return [
        searching(small, (32, 16), 64, 6, 4, "search of 64 trials, 20,000 rows, hidden layers 32-16"),
        searching(large, (128, 64), 512, 6, 2, "search of 64 trials, flights, hidden layers 128-64"),
    ]


def pruning() -> list[Row]:
    """Pruned against unpruned search on 20,000 flights: time, and the best validation score each found."""
    gaps, ratios = [], []
    for seed in range(5):
        common = {**TEXTBOOK, "search.space": SPACE, "search__n_trials": 32, "search__epochs": 6}
        table = flights(seed, **common, train__epochs=6, train__batch_size=128, model__hidden=[128, 64])
        settings = config.replaced(table.config, {"search.rows": 20_000})
        whole = config.replaced(settings, {"search.reduction": None})
        found, seconds = {}, {}
        for name, asked in (("pruned", settings), ("whole", whole)):
            start = time.perf_counter()
            found[name] = our_search(table, asked)
            seconds[name] = time.perf_counter() - start
        ratios.append(seconds["whole"] / seconds["pruned"])
        gaps.append((found["whole"].best.score or 0) - (found["pruned"].best.score or 0))
    return [
        {
            "what": "search of 32 trials with pruning, five seeds",
            "against": "the same search without pruning",
            "seen": f"{statistics.median(ratios):.1f}x as fast; best accuracy lower by {statistics.mean(gaps):.4f} on average, {max(gaps):.4f} at most",
            "ratio": statistics.median(ratios),
            "gaps": gaps,
        }
    ]


def widths() -> list[Row]:
    """What the rule of `search.stack_width` rests on: seconds a member, by the width of the stack."""
    rows = []
    for hidden, batch_size in (([32, 16], 64), ([64, 32], 256), ([128, 64], 512), ([256, 128], 512)):
        table = flights(**TEXTBOOK, train__epochs=1, train__batch_size=batch_size, model__hidden=hidden).head(16_384)
        each = {}
        val = table.splits["val"].take(torch.arange(2000))

        def of_width(width: int) -> float:
            members = [new_members(table.config, table.splits["train"], table.schema)[0] for _ in range(width)]  # noqa: B023
            return timed(lambda: fit(members, table.splits["train"], val, table.schema.target)) / width  # noqa: B023

        for width in (1, 2, 4, 8, 16, 32, 64):
            each[width] = statistics.median(of_width(width) for _ in range(REPEATS))
        best = min(each.values())
        rows.append(
            {
                "hidden": hidden,
                "batch_size": batch_size,
                "seconds_a_member": each,
                "relative": {w: s / best for w, s in each.items()},
            }
        )
    return rows


def scaling() -> list[Row]:
    """Cost and memory as rows and columns grow, each in a process of its own; the slope of the log-log fit."""
    rows = []
    for name, sizes in (
        ("rows", [(10_000, 10), (100_000, 10), (1_000_000, 10), (10_000_000, 10)]),
        ("columns", [(100_000, 10), (100_000, 100), (100_000, 1000)]),
    ):
        found = [measured_alone(*size) for size in sizes]
        grown = [size[0 if name == "rows" else 1] for size in sizes]
        slope = np.polyfit(np.log(grown), np.log([each["seconds"] for each in found]), 1)[0]
        rows.append(
            {
                "what": f"one epoch, {grown[0]:,} to {grown[-1]:,} {name}",
                "against": f"number of {name}",
                "seen": f"time grows with its power {slope:.2f}; peak memory is {found[-1]['memory']:.1f}x the arrays",
                "slope": slope,
                "points": [
                    dict(zip(("rows", "columns"), size, strict=True)) | each
                    for size, each in zip(sizes, found, strict=True)
                ],
            }
        )
    return rows


def measured_alone(n_rows: int, n_columns: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench", "--size", str(n_rows), str(n_columns)]
    return dict(
        json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent).stdout.splitlines()[-1]
        )
    )


def one_size(n_rows: int, n_columns: int) -> None:
    """An epoch of the default preset over random tensors; prints seconds, and peak memory above the libraries' in multiples of the arrays."""
    from pipeline.tables.tensors import TabularData

    torch.set_num_threads(1)
    leaves = {"train__epochs": 1, "train__batch_size": 512, "model__ensemble": 1}
    settings = configured("made up", "y", "multiclass", **leaves).sized(n_rows)
    few = synthetic(500, n_columns, **leaves)
    ours(few, settings)  # so that what libraries take is there
    before = peak_memory()
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(n_rows, n_columns, generator=draws)
    data = TabularData(x, torch.empty(n_rows, 0, dtype=torch.uint8), torch.randint(3, (n_rows,), generator=draws))
    table = replace(few, splits={"train": data, "val": data.take(torch.arange(1000))})
    seconds = timed(lambda: ours(table, settings))
    arrays = x.nbytes + data.y.nbytes
    print(json.dumps({"seconds": seconds, "memory": (peak_memory() - before) / arrays}))


def peak_memory() -> int:
    """Bytes; not `ru_maxrss`, which a process has from the one that started it."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def repro() -> list[Row]:
    """The whole default pipeline by `dvc repro`, against what its stages spend on imports and computing."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", str(HERE.parent), folder], check=True)
        environment = {**os.environ, "PYTHONPATH": folder}
        environment.pop("MLFLOW_TRACKING_URI", None)
        whole = timed(
            lambda: subprocess.run(["dvc", "repro", "-q"], check=True, cwd=folder, env=environment, capture_output=True)
        )

        def spent(*stage: str) -> dict[str, float]:
            command = [sys.executable, "-m", "benchmarks.stage_times", *stage]
            done = subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True, text=True)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        parts = {stage: spent(stage) for stage in dvc_stages(Path(folder))}
        params = Path(folder) / "params.yaml"
        config.adopt({"search": {"n_trials": 64}}, params)
        pairs = [(spent("search")["search"], spent("search", "untracked")["search"]) for _ in range(2)]
    total = {part: sum(each[part] for each in parts.values()) for part in ("imports", "tracking", "compute")}
    ratio = whole / (total["imports"] + total["compute"])
    share = statistics.median(1 - without / tracked for tracked, without in pairs)
    return [
        {
            "what": "`dvc repro` of the default pipeline",
            "against": "its stages, timed one by one",
            "seen": f"{whole:.0f} s; imports {total['imports']:.0f} s, computing {total['compute']:.0f} s, tracking {total['tracking']:.0f} s",
            "ratio": ratio,
            "stages": parts,
        },
        {
            "what": "tracking of a search of 64 trials",
            "against": "the same search without child runs",
            "seen": f"{100 * share:.1f} % of the time",
            "ratio": share,
            "seconds": pairs,
        },
    ]


def dvc_stages(folder: Path) -> list[str]:
    """The stages in the order that `dvc repro` runs them."""
    listed = subprocess.run(
        ["dvc", "stage", "list", "--name-only"], check=True, cwd=folder, capture_output=True, text=True
    )
    return listed.stdout.split()


def draw(rows: list[Row]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.55 * len(rows) + 1))
    labels = [f"{row['what']}\nagainst {row['against']}" for row in rows]
    # From a half on: as fast as the other is in the middle of the picture, not at its edge.
    bars = axes.barh(range(len(rows)), [row["ratio"] - 0.5 for row in rows], left=0.5, color="#4878a8")
    axes.set_yticks(range(len(rows)), labels)
    axes.bar_label(bars, [f"{row['ratio']:.1f}x" for row in rows], padding=4)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 3 * max(row["ratio"] for row in rows))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=100, metadata={"Software": None})


def main() -> None:
    torch.set_num_threads(1)
    if "--size" in sys.argv:
        place = sys.argv.index("--size")
        one_size(int(sys.argv[place + 1]), int(sys.argv[place + 2]))
        return
    parts: dict[str, Callable[[], list[Row]]] = {
        "epoch": one_epoch, "search": searches, "pruning": pruning, "scaling": scaling, "repro": repro,
    }  # fmt: skip
    chosen = sys.argv[1:] or list(parts)
    path = HERE / "bench.json"
    results = json.loads(path.read_text()) if path.exists() and sys.argv[1:] else {}
    for name in chosen:
        results[name] = widths() if name == "widths" else parts[name]()
        files.write_json(path, rounded(results))
        for row in results[name] if name != "widths" else []:
            print("| {what} | {against} | {seen} |".format(**row), flush=True)
    if not sys.argv[1:]:
        results["widths"] = widths()
        files.write_json(path, rounded(results))
    draw([row for name in ("epoch", "search") for row in results.get(name, [])])


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
