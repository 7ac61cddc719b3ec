import dataclasses

import pytest
from markdown_it import MarkdownIt

from pipeline.core.errors import UserError
from pipeline.core.settings import Data, Register
from pipeline.stages.register.model_card import model_card
from pipeline.stages.register.selection import choose
from tests import samples

SCORES = {
    "train": {"val.accuracy": 0.7, "val.loss": 0.4, "test.accuracy": 0.9},
    "search": {"val.accuracy": 0.8, "val.loss": 0.5, "test.accuracy": 0.6},
    "finetune": {"transfer.val.accuracy": 0.95, "transfer.accuracy": 0.9},
}


def register(metric="val.accuracy", minimum=0.5):
    return Register(name="model", metric=metric, minimum=minimum)


@pytest.mark.parametrize(
    ("metric", "minimum", "name", "score"),
    [
        ("val.accuracy", 0.5, "search", 0.8),
        ("val.accuracy", 0.8, "search", 0.8),
        ("val.loss", 0.5, "train", 0.4),
        ("val.loss", 0.4, "train", 0.4),
        ("transfer.val.accuracy", 0.5, "finetune", 0.95),
    ],
)
def test_the_best_on_validation_rows_is_chosen(metric, minimum, name, score):
    choice = choose(SCORES, register(metric, minimum), "multiclass")
    assert (choice.name, choice.metric, choice.score) == (name, metric, score)
    assert sum("(champion)" in line for line in choice.lines) == 1
    assert any(line.startswith(f"{name}: {metric} {score:.4f} (champion)") for line in choice.lines)


def test_the_first_of_equals_is_chosen():
    for metric in ("val.accuracy", "val.loss"):
        equal = {"train": {metric: 0.6}, "search": {metric: 0.6}}
        assert choose(equal, register(metric, 0.6), "binary").name == "train"


@pytest.mark.parametrize(
    ("metric", "minimum", "says"),
    [
        ("val.accuracy", 0.9, r"the best val\.accuracy, 0\.8000 of search, is below register\.minimum 0\.9"),
        ("val.loss", 0.3, r"the best val\.loss, 0\.4000 of train, is above register\.minimum 0\.3"),
    ],
)
def test_a_best_below_the_minimum_is_refused_with_its_numbers(metric, minimum, says):
    with pytest.raises(UserError, match=says):
        choose(SCORES, register(metric, minimum), "multiclass")


def test_a_metric_of_another_task_gives_way_to_the_first_of_this_one_with_a_note():
    scores = {"train": {"val.rmse": 50.0}, "search": {"val.rmse": 40.0}}
    choice = choose(scores, register("val.accuracy", 0.6), "regression")
    assert (choice.name, choice.metric, choice.score) == ("search", "val.rmse", 40.0)
    assert "val.accuracy" in choice.lines[0]
    assert "val.rmse" in choice.lines[0]
    assert choose(SCORES, register("val.rmse", 0.0), "binary").name == "search"


def test_a_metric_that_no_model_has_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"no model has transfer\.val\.loss; there is .*val\.accuracy"):
        choose(SCORES, register("transfer.val.loss"), "multiclass")


# --------------------------------------------------------------------------------------------------------- the card


def card(of, **leaves):
    bundle = samples.bundle(of)
    bundle.params["model.activation"] = "a|b<i>"
    scores = {"val.loss": 0.1234, "test.accuracy": 0.9, "test.loss": 0.2}
    trees = {"test.accuracy": 0.85, "constant.test.accuracy": 0.4}
    config = samples.configuration(of.target.task, data__target=of.target.name, **leaves)
    return model_card(
        bundle, choose({"train": scores}, register("val.loss", 1.0), of.target.task), scores, trees, config
    )


def parsed(text):
    """What a reader sees: the text of the rendered card, and the rows of its tables."""
    shown, rows, cell = [], [], None
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


def test_the_card_tells_of_data_split_metrics_use_and_loading():
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


NAMES = ["a|b", "<script>x</script>", "snake_case_name", "*bold*", "back`tick", "{curly}", "[link](x)", "a&lt;b", "\\"]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_shows_names_from_the_table_as_they_are(name):
    of = samples.sample("mixed")
    table = of.raw.rename(columns={"sold": name}).replace({name: {"yes": f"y{name}", "no": f"n{name}"}})
    named = samples.make(table, Data(source="mixed", target=name, task="binary"))
    shown, _ = parsed(card(named, data__source=f"data/{name}.csv"))
    assert f"predicts {name} (binary: n{name}, y{name})" in shown
    assert f"Source: data/{name}.csv, " in shown


def test_the_card_tells_of_the_transfer_domain():
    of = samples.sample("iris")
    learned = of.schema.model_copy(update={"transfer_target": of.target})
    shown, _ = parsed(
        card(dataclasses.replace(of, schema=learned), data__transfer={"column": "a_b", "values": ["x|y"]})
    )
    assert "a_b" in shown
    assert "x|y" in shown
    assert "no transfer domain" not in shown
