import dataclasses

import pytest
from markdown_it import MarkdownIt

from pipeline.core.settings import Data, Register
from pipeline.stages.register.model_card import model_card
from pipeline.stages.register.selection import choose
from tests.support import samples


def register(metric="val.accuracy", minimum=0.5):
    return Register(name="model", metric=metric, minimum=minimum)


def card(of, models=("train",), **leaves):
    bundle = samples.bundle(of)
    bundle.params["model.activation"] = "a|b<i>"
    scores = {"val.loss": 0.1234, "test.accuracy": 0.9, "test.loss": 0.2}
    trees = {"test.accuracy": 0.85, "constant.test.accuracy": 0.4}
    config = samples.configuration(of.target.task, data__target=of.target.name, **leaves)
    known = {name: scores if name in models else {} for name in ("train", "search", "finetune")}
    choice = choose(known, register("val.loss", 1.0), of.target.task)
    return model_card(bundle, choice, scores, trees, config)


def parsed(text):
    """Return the text of the rendered card, and the rows of its tables."""
    shown, cell = list[str](), None
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            rows.append([])
        cell = {"td_open": rows, "th_open": rows, "td_close": None, "th_close": None}.get(token.type, cell)
        if token.type == "inline":
            plain = "".join(child.content if child.type != "softbreak" else " " for child in token.children)
            assert not [child for child in token.children if child.type == "html_inline"], plain
            shown.append(plain)
            if cell is not None:
                rows[-1].append(plain)
        assert token.type != "html_block"
    return "\n".join(shown), rows


def test_the_card_describes_data_split_metrics_use_and_loading():
    of = samples.sample("iris")
    text = card(of, seed=7, data__split={"train": 0.7, "val": 0.2, "test": 0.1})
    for heading in ("## Data", "## Metrics", "## Intended use", "## How to load", "## Parameters"):
        assert heading in text
    shown, rows = parsed(text)
    for part in (
        "sklearn:iris",
        "source_train 120",
        "0.7 / 0.2 / 0.1 by random",
        "seed 7",
        "predicts target",
        "0, 1, 2",
    ):
        assert part in shown
    assert "0.1234" in shown
    assert "There is no transfer domain" in shown
    assert ["test.accuracy", "0.9000", "0.8500", "0.4000"] in rows
    assert ["val.loss", "0.1234", "", ""] in rows
    assert ["train.lr", "0.05"] in rows
    assert ["model.hidden", "[8]"] in rows
    assert ["model.activation", "a|b<i>"] in rows
    assert "python -m pipeline predict models/champion" in text
    assert 'mlflow.pyfunc.load_model("models:/model@champion")' in text
    assert "standardised target" not in text
    assert "standardised target" in card(samples.sample("diabetes"))


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        (("train", "search"), "Chosen among the trained and the searched network for its val.loss of 0.1234."),
        (("train", "search", "finetune"), "Chosen among the trained, the searched and the fine-tuned network for its"),
    ],
)
def test_the_card_names_the_models_that_were_compared(models, sentence):
    shown, _ = parsed(card(samples.sample("iris"), models))
    assert sentence in shown


NAMES = ["a|b", "<script>x</script>", "snake_case_name", "*bold*", "back`tick", "{curly}", "[link](x)", "a&lt;b", "\\"]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_shows_names_from_the_table_as_they_are(name):
    of = samples.sample("mixed")
    table = of.raw.rename(columns={"sold": name}).replace({name: {"yes": f"y{name}", "no": f"n{name}"}})
    named = samples.make(table, Data(source="mixed", target=name, task="binary"))
    shown, _ = parsed(card(named, data__source=f"data/{name}.csv"))
    assert f"predicts {name} (binary: n{name}, y{name})" in shown
    assert f"Source: data/{name}.csv, " in shown


def test_the_card_describes_the_transfer_domain():
    of = samples.sample("iris")
    learned = of.schema.model_copy(update={"transfer_target": of.target})
    shown, _ = parsed(
        card(dataclasses.replace(of, schema=learned), data__transfer={"column": "a_b", "values": ["x|y"]})
    )
    assert "a_b" in shown
    assert "x|y" in shown
    assert "no transfer domain" not in shown
