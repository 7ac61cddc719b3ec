"""The model card of the champion."""

import html
import re
from collections.abc import Mapping

from pipeline.core.errors import printable
from pipeline.core.scores import shown
from pipeline.core.secrets import without_secret
from pipeline.core.settings import Config, Transfer
from pipeline.networks.bundle import Bundle
from pipeline.stages.register.selection import Choice

CANDIDATES = {
    "train": "the trained network",
    "search": "the best network of the search",
    "finetune": "the fine-tuned network",
}
CARD = """# {title}

A PyTorch network that predicts {target} ({what}) from {n_features} columns of a table. It has the best {metric},
{score}, of: {candidates}.

## Data

Source: {source}, {rows}. Split {split}, seed {seed}. {domain}
`model.json` lists the kind of each column, and why some were dropped, under `schema`.

## Metrics

| metric | this model | trees | constant |
| --- | --- | --- | --- |
{metrics}

{notes}

## Intended use

For rows from the same population, with the same columns. New categories are treated as unseen, missing values as
missing. {calibrated}The quality on other populations, or after the data have changed, is unknown: check the metrics on new
rows before relying on the model.

## How to load

```
python -m pipeline predict models/champion new.csv -o out.parquet
```

```python
import mlflow
model = mlflow.pyfunc.load_model("models:/{name}@champion")
model.predict(table)  # a pandas DataFrame of raw columns
```

## Parameters

| parameter | value |
| --- | --- |
{params}
"""


def model_card(
    bundle: Bundle, choice: Choice, scores: Mapping[str, float], baseline: Mapping[str, float], config: Config
) -> str:
    """The model card in Markdown (after Mitchell et al. 2019, "Model Cards for Model Reporting")."""
    data, target, rows = config.data, bundle.target, bundle.schema.rows
    classes = f"{target.task}: {', '.join(map(str, target.classes[:10]))}" if target.classes else "regression"
    table = [
        [name, shown(score), *(shown(found[key]) if key in found else "" for key in (name, f"constant.{name}"))]
        for name, score in scores.items()
        for found in [baseline]
    ]
    return CARD.format(
        name=config.register_.name,
        title=_cell(config.register_.name),
        target=_cell(target.name),
        what=_cell(classes),
        n_features=len(bundle.schema.features),
        candidates=", ".join(CANDIDATES[name] for name in choice.candidates),
        metric=choice.metric,
        calibrated="`ece` is the calibration error of the probabilities. " if target.classes else "",
        score=shown(choice.score),
        source=_cell(without_secret(data.source)),
        rows=", ".join(f"{name} {n:,}" for name, n in rows.items()),
        split=f"{data.split.train:g} / {data.split.val:g} / {data.split.test:g} by {_cell(data.split.by)}",
        seed=config.seed,
        domain=_domain(data.transfer) if bundle.schema.transfer_target else "There is no transfer domain.",
        metrics="\n".join(f"| {' | '.join(cells)} |" for cells in table),
        notes="`test` are test rows of the source domain, `transfer` of the transfer domain; `val` are the rows that selected the model."
        + (
            " The loss is of the standardised target; other errors are in the units of the target."
            if target.task == "regression"
            else ""
        ),
        params="\n".join(f"| `{name}` | {_cell(str(value))} |" for name, value in bundle.params.items()),
    )


def _domain(transfer: Transfer | None) -> str:
    assert transfer is not None
    if transfer.source is not None:
        return f"The transfer domain is the table {_cell(without_secret(transfer.source))}."
    return f"The transfer domain is the rows whose {_cell(str(transfer.column))} is {_cell(' or '.join(map(str, transfer.values)))}."


def _cell(text: str) -> str:
    """Text that Markdown shows literally."""
    plain = html.escape(printable(" ".join(text.split())), quote=False)
    return re.sub(r"([\\`|\[\]*_{}~$!@])", r"\\\1", plain)
