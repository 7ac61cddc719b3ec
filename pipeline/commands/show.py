"""`python -m pipeline show`."""

from pathlib import Path


def show() -> None:
    """Print the test scores of every model on both domains, read from reports/."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.core import config
    from pipeline.core.scores import load_scores, shown, task_metrics

    metric = task_metrics(config.load().data.task)[0]
    columns = [f"{domain}.{name}" for domain in ("test", "transfer") for name in (metric, "loss")]
    trees = load_scores(Path("reports/baseline"))
    rows = {name: load_scores(Path("reports") / name) for name in ("train", "search", "finetune")}
    constant = {name.removeprefix("constant."): score for name, score in trees.items() if name.startswith("constant.")}
    table = Table("model", *columns)
    for name, scores in (rows | {"trees": trees, "constant": constant}).items():
        table.add_row(name, *(shown(scores[column]) if column in scores else "-" for column in columns))
    out = Console()
    out.print(table)
    out.print("See also: make ui, dvc plots show, reports/*/*.png, models/champion/README.md", highlight=False)
