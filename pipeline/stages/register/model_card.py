"""Write the model card of the champion."""

import html
import re
from collections.abc import Mapping, Sequence

from pipeline.core.errors import printable
from pipeline.core.scores import shown
from pipeline.core.secrets import without_secret
from pipeline.core.settings import Config, Transfer
from pipeline.networks.bundle import Bundle
from pipeline.stages.register.selection import Choice

CARD = """# {title}

A PyTorch network that predicts {target} ({what}) from {n_features} columns of a table. Chosen among {candidates} for its
{metric} of {score}.

## Data

Source: {source}, {rows}. Split {split}, seed {seed}. {domain}
The kind of each column, and the reason for it, is in `model.json` under `schema`.

## Metrics

| metric | this model | trees | constant |
| --- | --- | --- | --- |
{metrics}

{notes}

## Intended use

For rows like the training rows: the same columns, from the same population. Categories that were not in training count as
unseen, missing values as missing. {calibrated}Performance on other populations or on later data is unknown: evaluate the
model on new rows before relying on it.

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
    """Format a model card as Markdown (Mitchell et al. 2019, "Model Cards for Model Reporting")."""
    data, target = config.data, bundle.target
    classes = f"{target.task}: {', '.join(map(str, target.classes[:10]))}" if target.classes else "regression"

    def compared(name: str) -> str:
        return shown(baseline[name]) if name in baseline else ""

    rows = [f"| {k} | {shown(v)} | {compared(k)} | {compared(f'constant.{k}')} |" for k, v in scores.items()]
    notes = "`val` are the rows the model was chosen on, `test` rows of the source domain, `transfer` of the transfer domain."
    if target.task == "regression":
        notes += " Losses are of the standardised target; other errors are in its own units."
    return CARD.format(
        name=config.register_.name,
        title=_escaped(config.register_.name),
        target=_escaped(target.name),
        what=_escaped(classes),
        n_features=len(bundle.schema.features),
        candidates=_joined(choice.candidates),
        metric=choice.metric,
        calibrated="The calibration error of the probabilities is `ece` above. " if target.classes else "",
        score=shown(choice.score),
        source=_escaped(without_secret(data.source)),
        rows=", ".join(f"{name} {n:,}" for name, n in bundle.schema.rows.items()),
        split=f"{data.split.train:g} / {data.split.val:g} / {data.split.test:g} by {_escaped(data.split.by)}",
        seed=config.seed,
        domain=_domain(data.transfer) if bundle.schema.transfer_target else "There is no transfer domain.",
        metrics="\n".join(rows),
        notes=notes,
        params="\n".join(f"| `{name}` | {_escaped(str(value))} |" for name, value in bundle.params.items()),
    )


def _joined(candidates: Sequence[str]) -> str:
    adjectives = {"train": "trained", "search": "searched", "finetune": "fine-tuned"}
    *others, last = [f"the {adjectives[name]}" for name in candidates]
    return f"{', '.join(others)} and {last} network" if others else f"{last} network"


def _domain(transfer: Transfer | None) -> str:
    assert transfer is not None
    if transfer.source is not None:
        return f"The transfer domain is the table {_escaped(without_secret(transfer.source))}."
    values = " or ".join(map(str, transfer.values))
    return f"The transfer domain is the rows whose {_escaped(str(transfer.column))} is {_escaped(values)}."


def _escaped(text: str) -> str:
    """Escape text from a table, so that Markdown shows it literally."""
    plain = html.escape(printable(" ".join(text.split())), quote=False)
    return re.sub(r"([\\`|\[\]*_{}~$!@])", r"\\\1", plain)
