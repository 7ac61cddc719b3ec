"""Parameters load as a frozen `Config` or are refused in one clear line."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.core import config
from pipeline.core.errors import UserError
from pipeline.core.settings import STRONG, Config, Model, Train
from tests.support.imports import ROOT

SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")
VALUES = YAML(typ="safe", pure=True).load(SHIPPED)
LEAVES = config.flatten(VALUES)


@pytest.fixture
def params(tmp_path):
    """Return a function that writes `params.yaml` with some texts replaced and returns its path."""

    def write(*replaced: tuple[str, str], text: str = SHIPPED) -> Path:
        for old, new in replaced:
            assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in params.yaml"
            text = text.replace(old, new)
        path = tmp_path / "params.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        config.load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert str(path) in message
    return message


def line_of(path: Path, text: str) -> str:
    return f"line {path.read_text().split(text)[0].count(chr(10)) + 1}"


def test_shipped_parameters_load_as_written(params):
    loaded = config.load(params())
    expected = config.nest({n: STRONG[n] if v == "preset" else v for n, v in config.flatten(VALUES).items()})
    expected["search"]["space"] = VALUES["search"]["space"]  # its names contain dots
    assert loaded.model_dump(mode="json", by_alias=True, exclude_unset=True) == expected


def test_left_out_sections_get_defaults():
    needed = {key: VALUES[key] for key in ("data", "search", "register")}
    loaded = config.from_mapping({**needed, "train": {"preset": "textbook"}})
    assert (loaded.seed, loaded.model, loaded.train) == (42, Model(), Train(preset="textbook"))


def test_preset_and_missing_values_are_replaced_by_the_values_of_the_preset():
    given: tuple[dict[str, Any], ...] = (
        {},
        {"train": {}},
        {"train": {"lr": "preset"}, "model": {"ensemble": "preset"}},
    )
    for written in given:
        loaded = config.from_mapping({**{key: VALUES[key] for key in ("data", "search", "register")}, **written})
        found = config.flatten(loaded.model_dump(mode="json"))
        assert {name: found[name] for name in STRONG} == STRONG
    textbook = config.flatten(config.from_mapping({**VALUES, "train": {"preset": "textbook"}}).model_dump(mode="json"))
    defaults = {
        **config.flatten({"model": Model().model_dump(mode="json")}),
        **config.flatten({"train": Train().model_dump(mode="json")}),
        "data.scaling": "standard",
    }
    assert {name: textbook[name] for name in STRONG} == {name: defaults[name] for name in STRONG}


@pytest.mark.parametrize("preset", ["textbook", "strong"])
def test_a_written_value_wins_over_the_preset(preset):
    loaded = config.from_mapping({**VALUES, "train": {"preset": preset, "lr": 0.25, "patience": None, "epochs": 7}})
    assert (loaded.train.lr, loaded.train.patience, loaded.train.epochs) == (0.25, None, 7)


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "epochs"),
    [(2, 16, 2000), (142, 16, 223), (1437, 16, 23), (20_000, 128, 20), (10**6, 512, 20)],
)
def test_auto_sizes_follow_the_number_of_rows(n_rows, batch_size, epochs):
    auto = Train(batch_size="auto", epochs="auto").sized(n_rows)
    assert (auto.rows_a_step, auto.n_epochs) == (batch_size, epochs)
    assert Train(batch_size=7, epochs=3).sized(n_rows) == Train(batch_size=7, epochs=3)


@pytest.mark.parametrize(
    "name", ["train.epochs", "train.patience", "train.overfit.rows", "model.ensemble", "train.preset"]
)
def test_a_parameter_without_effect_on_a_trial_cannot_be_searched(params, name):
    path = params(("    train.lr: {", f"    {name}: {{low: 2, high: 3}}\n    train.lr: {{"))
    assert f"search.space.{name} has no effect on a trial" in refusal(path)


def test_the_words_auto_and_preset_can_be_searched_where_a_parameter_takes_them(params):
    def space(name, word):
        return params(("    model.dropout: {low: 0.0, high: 0.2}", f"    {name}: {{choices: [{word}, 0.5]}}"))

    assert config.load(space("model.dropout", "preset")).search.space["model.dropout"].ends == ("preset", 0.5)
    for name, word in (("train.momentum", "preset"), ("model.dropout", "auto"), ("train.momentum", "auto")):
        assert f"search.space.{name}: {name} must be a valid number, got '{word}'" in refusal(space(name, word))


def test_config_cannot_be_changed(params):
    loaded = config.load(params())
    with pytest.raises(ValidationError, match="frozen"):
        loaded.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        loaded.train.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("\nseed: 42", "\nsede: 42", ["sede is not a known key", "did you mean seed"]),
        ("  momentum: 0.9 ", "  momentun: 0.9 ", ["train.momentun is not a known key", "did you mean momentum"]),
        ("{noise: 0.0", "{noisy: 0.0", ["train.augment.noisy is not a known key", "did you mean noise"]),
        ("column: origin", "colum: origin", ["data.transfer.colum is not a known key", "did you mean column"]),
        ("{low: 0.0, high", "{low: 0.0, hihg", ["search.space.model.dropout.hihg", "did you mean high"]),
        ("model:\n", "modle:\n", ["modle is not a known key", "did you mean model"]),
        ("  lr: preset", "  lr: fast", ["train.lr must", "number", "'fast'"]),
        ("  lr: preset", "  lr: true", ["train.lr must", "number", "True"]),
        ("  lr: preset", "  lr: '0.05'", ["train.lr must", "number", "'0.05'"]),
        ("  lr: preset", "  lr: .nan", ["train.lr must", "finite"]),
        ("  lr: preset", "  lr: 0", ["train.lr must", "greater than 0", "got 0"]),
        ("  lr: preset", "  lr: 2013-01-01", ["train.lr must", "number", "2013-01-01"]),
        ("batch_size: preset", "batch_size: 512.0", ["train.batch_size must", "integer", "512.0"]),
        ("batch_size: preset", "batch_size: 0", ["train.batch_size must", "1", "got 0"]),
        ("momentum: 0.9 ", "momentum: 1.0 ", ["train.momentum must", "less than 1", "1.0"]),
        ("seed: 42", "seed: -1", ["seed must", "0", "-1"]),
        ("activation: relu ", "activation: rely ", ["model.activation must", "relu", "'rely'"]),
        ("hidden: [128, 64]", "hidden: [128, 0]", ["model.hidden.1 must", "got 0"]),
        ("by: random}", "by: radnom}", ["data.split.by must be random, time:<column> or group:<column>", "'radnom'"]),
        ("encoding: auto", "encoding: utf-99", ["data.csv", "encoding", "'utf-99'"]),
        ("train: 0.8", "train: 0.7", ["data.split", "train + val + test must be 1", "0.9"]),
        ("freeze: 0 ", "freeze: -1 ", ["finetune.freeze must", "0", "-1"]),
        ("{low: 0.0, high: 0.2}", "{low: 0.99, high: 0.85}", ["search.space.model.dropout", "low must be less"]),
        ("{low: 0.0, high: 0.2}", "{low: 0.85}", ["search.space.model.dropout", "low and high, or choices"]),
        ("{low: 1.0e-3, high: 1.0e-2", "{low: 0.0, high: 1.0", ["search.space.train.lr", "low must be greater than 0"]),
        ("train.lr: {low", "train.lrr: {low", ["search.space.train.lrr", "did you mean train.lr"]),
        ("train.lr: {low", "train.augment: {low", ["search.space.train.augment", "train.augment.noise"]),
        ("high: 0.2}", "high: 1.5}", ["search.space.model.dropout", "less than 1", "1.5"]),
        ("[[64], ", "[[0], ", ["search.space.model.hidden", "got 0"]),
        ("[128, 64]       ", "[1000000, 1000000]", ["model.hidden.0 must be less than or equal to 65536, got 1000000"]),
        ("  bins: 32", "  bins: 1000000000", ["model.bins must be less than or equal to 65536"]),
        ("  slope: 0.01", "  slope: 1e308", ["model.slope must be less than or equal to 1000000000"]),
        ("  lr: preset", "  lr: 1e40", ["train.lr must be less than or equal to 1000000000"]),
        ("  epochs: preset", "  epochs: 10000000", ["train.epochs must be less than or equal to 1000000"]),
        ("  n_trials: 32", "  n_trials: 1000000000000", ["search.n_trials must be less than or equal to 100000"]),
        ("high: 0.2}", "high: 0.2, steps: 10000000}", ["search.space.model.dropout.steps must be less than or equal"]),
        ("threads: 1 ", "threads: 100000 ", ["threads must be less than or equal to 1024"]),
        ("{rows: 32, steps", "{rows: 10000000000, steps", ["train.overfit.rows must be less than or equal"]),
        ("  workers: null", "  workers: 5000", ["search.workers must be less than or equal to 1024"]),
        ("metric: val.accuracy", "metric: val.acuracy", ["register.metric", "val.accuracy", "'val.acuracy'"]),
        ("values: [LGA]", "values: [[1]]", ["data.transfer.values.0", "got [1]"]),
    ],
)
def test_an_error_names_line_dotted_name_and_value(params, old, new, said):
    path = params((old, new))
    message = refusal(path)
    assert line_of(path, new.lstrip("\n")) in message, message
    for words in said:
        assert words in message, message


def test_a_nested_transfer_value_is_refused_with_every_allowed_type(params):
    message = refusal(params(("values: [LGA]", "values: [[1]]")))
    assert "must be a valid boolean or must be a valid integer" in message


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ([("  freeze: 0 ", "  freeze: 3 ")], ["finetune.freeze", "3 layers", "got 3"]),
        (
            [("hidden: [128, 64]", "hidden: []"), ("  freeze: 0 ", "  freeze: 1 ")],
            ["finetune.freeze", "1 layers", "got 1"],
        ),
        ([("sampler: random", "sampler: grid")], ["space.train.lr", "choices or steps", "grid"]),
        ([("drop: []", "drop: [arrival]")], ["data", "target 'arrival'", "drop"]),
        ([("\ndata:\n", "\ndate:\n")], ["data"]),
        (
            [("task: multiclass ", "task: regression "), ("label_smoothing: 0.0", "label_smoothing: 0.1")],
            ["train.label_smoothing", "regression"],
        ),
        (
            [("task: multiclass ", "task: regression "), ("class_weights: null", "class_weights: balanced")],
            ["train.class_weights", "regression"],
        ),
    ],
)
def test_parts_that_disagree_are_refused(params, replaced, said):
    message = refusal(params(*replaced))
    for words in said:
        assert words in message, message


@pytest.mark.parametrize("name", ["frequencies", "width"])
def test_the_parts_of_plr_have_an_upper_bound(params, name):
    path = params(("  bins: 32", f"  plr: {{{name}: 1000000}}\n  bins: 32"))
    assert f"model.plr.{name} must be less than or equal to 65536" in refusal(path)


def test_an_embedding_has_an_upper_bound(params):
    path = params(("  bins: 32", "  embedding: 1000000\n  bins: 32"))
    assert "model.embedding must be less than or equal to 65536" in refusal(path)


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///../outside.db",
        "sqlite:////tmp/outside.db",
        "sqlite:///%2e%2e/outside.db",
        "sqlite:///%2Ftmp/outside.db",
        "sqlite+pysqlite:///runs/../../outside.db",
        " SQLite:////tmp/outside.db",
        "sqlite:///file:/tmp/outside.db?uri=true",
        "file:///tmp/runs",
        "file:../runs",
        "file:%2e%2e/runs",
        "/tmp/runs",
        "../runs",
        "runs/../../runs",
    ],
)
def test_a_tracking_database_outside_of_the_project_is_refused(params, uri):
    message = refusal(params(("{uri: null,", f"{{uri: {json.dumps(uri)},")))
    assert "tracking.uri" in message
    assert "set the variable MLFLOW_TRACKING_URI" in message
    assert repr(uri) in message


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///mlflow2.db", "sqlite:///runs/a..b.db", "file:runs", "./mlruns", "http://127.0.0.1:5000", "postgresql://host/../db"],
)  # fmt: skip
def test_runs_go_to_a_server_or_a_database_of_the_project(params, uri):
    assert config.load(params(("{uri: null,", f"{{uri: {json.dumps(uri)},"))).tracking.uri == uri


def test_grid_takes_steps_and_choices(params):
    path = params(
        ("sampler: random", "sampler: grid"),
        ("high: 1.0e-2, log: true}", "high: 1.0e-2, log: true, steps: 3}"),
        ("high: 1.0e-1, log: true}", "high: 1.0e-1, log: true, steps: 2}"),
        ("{low: 0.0, high: 0.2}", "{choices: [0.0, 0.3]}"),
    )
    assert config.load(path).search.space["train.lr"].steps == 3


def test_whole_number_as_range_of_a_count_is_accepted(params):
    loaded = config.load(params(("    train.lr:", "    train.batch_size: {low: 32, high: 512}\n    train.lr:")))
    assert loaded.search.space["train.batch_size"].ends == (32, 512)


def test_exponent_without_a_point_is_a_number(params):
    assert config.load(params(("  lr: preset", "  lr: 1e-3"))).train.lr == 0.001


@pytest.mark.parametrize("source", ["null", "{source: other.csv}", "{column: month, values: [1, 2.5, true, x]}"])
def test_transfer_is_a_column_or_a_source_or_nothing(params, source):
    config.load(params(("{column: origin, values: [LGA]}", source)))


@pytest.mark.parametrize(
    "source", ["{}", "{column: a}", "{column: a, values: [1], source: b}", "{source: b, values: [1]}"]
)
def test_transfer_that_is_neither_or_both_is_refused(params, source):
    assert "data.transfer" in refusal(params(("{column: origin, values: [LGA]}", source)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 42", "seed: 42\nseed: 43", "line 4: duplicate key seed"),
        ("  lr: preset", "  lr: 0.05\n  lr: 0.06", "line 39: duplicate key lr"),
        ("seed: 42", "seed: [42", "line 4: not YAML"),
        ("seed: 42", "\tseed: 42", "line 3: not YAML"),
        ("seed: 42", "seed: !point 3", "line 3: not YAML"),
        ("seed: 42", "seed: 42\n---\nseed: 43", "not YAML"),
        ("seed: 42", "seed: \x01", "not YAML"),
        ("seed: 42", f"seed: {'9' * 5000}", "not YAML"),
        ("seed: 42", f"seed: {'[' * 3000}{']' * 3000}", "not YAML"),
        ("seed: 42", "? [1, 2]\n: 42", ""),
        ("seed: 42", "2013-01-01: 42", ""),
        ("seed: 42", "seed: &me {again: *me}", ""),
        ("seed: 42", '"a\\nb": 42', "is not a known key"),
        ("seed: 42", 'seed: "\\ud800"', ""),
        ("seed: 42", "seed: !!set {a, b}", "seed must"),
    ],
)
def test_hostile_yaml_ends_in_one_line(params, old, new, said):
    message = refusal(params((old, new)))
    assert said in message, message
    assert len(message) < 1000, message


@pytest.mark.parametrize("text", ["", "# nothing\n", "- 1\n", "text\n", "3\n"])
def test_file_without_sections_is_refused(params, text):
    assert "must hold sections" in refusal(params(text=text))


def test_missing_file_folder_and_other_encoding_are_refused(tmp_path):
    path = tmp_path / "params.yaml"
    assert "is missing" in refusal(path)
    path.write_bytes("seed: é".encode("latin-1"))
    assert "not UTF-8" in refusal(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "directory" in refusal(folder).replace(str(folder), "")


# ------------------------------------------------------------------------------------------------ replace and adopt


def test_replace_changes_only_the_named_values(params):
    loaded = config.load(params())
    changed = config.replaced(loaded, {"train.lr": 0.2, "model.hidden": [8], "data.transfer": None})
    assert (changed.train.lr, changed.model.hidden, changed.data.transfer) == (0.2, (8,), None)
    assert (
        config.replaced(
            config.replaced(changed, {name: LEAVES[name] for name in ("train.lr", "model.hidden")}),
            {"data.transfer.column": "origin", "data.transfer.values": ["LGA"]},
        )
        == loaded
    )
    assert loaded == config.load(params())


@pytest.mark.parametrize("values", [{"train.lr": -1.0}, {"train.nothing": 1}, {"seed": "x"}, {"model": 3}])
def test_replace_checks_the_new_values(values):
    with pytest.raises(UserError, match=next(iter(values)).replace(".", r"\.")):
        config.replaced(config.from_mapping(VALUES), values)


def test_adopt_keeps_everything_but_the_named_leaves(params):
    path = params()
    changes = config.adopt({"train": {"lr": 0.125, "momentum": 0.5}, "model": {"hidden": [32, 16]}}, path)
    assert changes == {
        "train.lr": ("preset", 0.125),
        "train.momentum": (0.9, 0.5),
        "model.hidden": ([128, 64], [32, 16]),
    }
    before, after = SHIPPED.splitlines(), path.read_text(encoding="utf-8").splitlines()
    assert [line.partition("#")[2] for line in after if "#" in line] == [
        line.partition("#")[2] for line in before if "#" in line
    ]
    new = {"train.lr": 0.125, "train.momentum": 0.5, "model.hidden": [32, 16]}
    assert config.flatten(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))) == LEAVES | new
    assert config.load(path) == config.replaced(config.from_mapping(VALUES), new)


def test_adopt_changes_only_the_lines_of_its_leaves(params):
    path = params()
    config.adopt({"train": {"lr": 0.125}}, path)
    before, after = SHIPPED.splitlines(), path.read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [(old.split("#")[0].rstrip(), new.split("#")[0].rstrip()) for old, new in changed] == [
        ("  lr: preset", "  lr: 0.125")
    ]


def test_adopt_of_a_wrong_value_writes_nothing(params):
    path = params()
    with pytest.raises(UserError, match=r"train\.lr"):
        config.adopt({"train": {"lr": -1.0}}, path)
    assert path.read_text(encoding="utf-8") == SHIPPED


def test_adopt_makes_a_section_that_the_file_lacks(params):
    path = params(text=SHIPPED.split("\nmodel:")[0] + "\nsearch:" + SHIPPED.split("\nsearch:")[1])
    config.adopt({"train": {"lr": 0.125}}, path)
    assert config.load(path).train.lr == 0.125


keys = st.text("abc_ éß\n", min_size=1, max_size=4)
plain: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
)
nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


@given(st.dictionaries(keys, st.dictionaries(keys, plain.filter(lambda v: v != {}), min_size=1, max_size=3)))
@settings(max_examples=50, database=None, deadline=None)
def test_nest_undoes_flatten(values):
    assert repr(config.nest(config.flatten(values))) == repr(json.loads(json.dumps(values)))


@given(
    changes=st.dictionaries(st.sampled_from(sorted(LEAVES)) | keys, nested, max_size=2),
    fresh=nested,
    whole=st.booleans(),
)
@settings(max_examples=80, database=None, deadline=None)
def test_any_values_load_or_are_refused_in_one_line(tmp_path_factory, changes, fresh, whole):
    values = config.nest(changes) if whole else copy.deepcopy(VALUES)
    for name, value in {} if whole else changes.items():
        *sections, key = name.split(".") if "search.space" not in name else ["search", "space", name]
        node = values
        for section in sections:
            node = node[section]
        node[key] = value
    loads_or_refuses(tmp_path_factory, json.dumps(fresh if whole and not changes else values))


tokens = st.sampled_from(
    ["[", "]", "{", "}", ": ", "- ", "&a ", "*a", "? ", "!!set ", "!x ", "|\n", "'", '"', "\n", "<<: ", "\t"]
)


@example(place=0, cut=0, put=["&a ", "[", "&a "])
@given(
    place=st.integers(0, len(SHIPPED)), cut=st.integers(0, 20), put=st.lists(tokens | st.text(max_size=3), max_size=4)
)
@settings(max_examples=80, database=None, deadline=None)
def test_any_damage_to_the_text_loads_or_is_refused_in_one_line(tmp_path_factory, place, cut, put):
    loads_or_refuses(tmp_path_factory, SHIPPED[:place] + "".join(put) + SHIPPED[place + cut :])


def loads_or_refuses(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    refused = ""
    try:
        assert isinstance(config.load(path), Config)
    except UserError as error:
        refused = str(error)
    assert len(refused.splitlines()) <= 1, repr(refused)
