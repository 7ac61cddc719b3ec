"""Each parameter is described once, in `settings.py`; `params.yaml` and the reference page repeat it word for word."""

from pathlib import Path

import pytest

from docs import reference
from pipeline.core import config
from pipeline.core.settings import STRONG, Config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "schema"), [pytest.param(*each, id=each[0]) for each in reference.properties()])
def test_every_parameter_and_section_has_a_short_description(name, schema):
    text = schema.get("description", "")
    assert text, name
    assert "\n" not in text
    assert not text.endswith(".")
    assert len(text) <= 90


def test_the_comments_of_params_yaml_are_the_descriptions():
    assert reference.commented() == (ROOT / "params.yaml").read_text(encoding="utf-8")  # python -m docs.reference


def test_the_comments_change_no_value():
    path = ROOT / "params.yaml"
    assert config.yaml_values(path, reference.commented()) == config.read_yaml(path)


def test_a_comment_lists_the_allowed_values_where_they_are_few():
    comments = reference.params_comments()
    assert comments["device"].endswith(": auto | cpu | cuda")
    assert comments["register.metric"].count("|") == 0
    assert comments["search.n_trials"] == Config.model_fields["search"].annotation.model_fields["n_trials"].description


@pytest.mark.parametrize(("path", "text"), [pytest.param(*each, id=each[0]) for each in reference.pages().items()])
def test_the_generated_pages_are_up_to_date(path, text):
    assert (ROOT / path).read_text(encoding="utf-8") == text, "run: python -m docs"


def test_the_reference_lists_every_parameter_with_its_default():
    page = reference.pages()["docs/parameters.md"]
    for name, _ in reference.properties():
        if "." in name and name.split(".")[-1] not in {"split", "csv", "plr", "augment"}:
            assert f"| `{name}` |" in page
    assert "| `train.lr` | `0.003` (preset) | number in (0, 1e9] |" in page
    assert "| `data.target` | required | text |" in page


def test_the_preset_table_has_both_values_of_every_preset_parameter():
    page = reference.pages()["docs/presets.md"]
    for name in STRONG:
        assert f"| `{name}` |" in page
    assert "| `train.lr` | `0.003` | `0.05` |" in page
