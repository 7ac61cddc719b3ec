"""`python -m pipeline show`."""

from pathlib import Path


def show() -> None:
    """A table of the models' test scores on both domains, read from reports/."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.core import config
    from pipeline.core.scores import load_scores, shown, task_metrics

    settings = config.load()
    metric = task_metrics(settings.data.task)[0]
    columns = [f"{domain}.{name}" for domain in ("test", "transfer") for name in (metric, "loss")]
    table = Table("model", *columns)
    rows = {name: load_scores(Path("reports") / name) for name in ("baseline", "train", "search", "finetune")}
    rows["trees"] = rows["baseline"]
    rows["constant"] = {
        key.removeprefix("constant."): value
        for key, value in rows.pop("baseline").items()
        if key.startswith("constant.")
    }
    for name, scores in rows.items():
        table.add_row(name, *(shown(scores[column]) if column in scores else "-" for column in columns))
    out = Console()
    out.print(table)
    out.print(
        "Next: make ui (compare runs), dvc plots show, reports/*/*.png, models/champion/README.md", highlight=False
    )
