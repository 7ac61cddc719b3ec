"""README and docs: links lead somewhere, names exist, and the commands run as they are written."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from sklearn.datasets import load_diabetes

from docs import drawing, graphs
from pipeline.commands.doctor.checks import CHECKS
from pipeline.core import config
from tests.support.clones import call, clone, environment
from tests.support.imports import ROOT
from tests.support.params import SMALL

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
EVERYTHING = "\n".join(TEXTS.values())
NOT_RUN = r"<!-- not run: (?P<reason>[^>]+) -->\n+\s*"  # what comes before a block that the test cannot run
RIDDLES = re.compile(
    r"\b(is|are) no (file|path|table|column|parameter|number)|stands (in|twice|for|there)|whoever|learnt by heart"
    r"|goes on (with|from)|told apart|what there is|to be mended",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it is not run (None if it is)."""

    language: str
    text: str
    reason: str | None


def blocks(text: str) -> Iterator[Block]:
    fenced = rf"(?:{NOT_RUN})?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$"
    for found in re.finditer(fenced, text, re.MULTILINE | re.DOTALL):
        lines = [line.removeprefix(found["indent"]) for line in found["text"].splitlines()]
        yield Block(found["language"], "\n".join(lines) + "\n", found["reason"])


def each(language: str) -> list[object]:
    return [
        pytest.param(block.text, id=f"{page}-{n}")
        for page, text in TEXTS.items()
        for n, block in enumerate(blocks(text))
        if block.language == language
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_relative_link_and_anchor_exists(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_readme_fits_on_three_screens() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", TEXTS)
def test_no_sentence_is_a_riddle(page: str) -> None:
    assert [found[0] for found in RIDDLES.finditer(TEXTS[page])] == []


def test_every_target_of_make_exists() -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", EVERYTHING, re.MULTILINE))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert named
    assert named <= targets


def test_every_command_of_the_pipeline_exists() -> None:
    source = (ROOT / "pipeline/commands/cli.py").read_text(encoding="utf-8")
    known = set(re.findall(r'add_parser\(\s*"(\w+)"', source))
    assert set(re.findall(r"python -m pipeline (\w+)", EVERYTHING)) == known


def test_every_file_of_the_project_that_is_named_exists() -> None:
    for name in set(re.findall(r"`((?:pipeline|tests|docs|benchmarks)/[\w/.-]+)`", EVERYTHING)):
        assert (ROOT / name).exists(), name


def test_troubleshooting_has_every_check_of_the_doctor() -> None:
    headings = re.findall(r"^### (.+)$", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    assert set(CHECKS) <= set(headings)


@pytest.mark.parametrize("text", each("yaml"))
def test_parameters_in_the_pages_load(text: str) -> None:
    values = config.read_yaml(ROOT / "params.yaml")
    for section, changed in YAML(typ="safe", pure=True).load(text).items():
        values[section] = values[section] | changed
    config.from_mapping(values)


@pytest.mark.parametrize("text", each("python"))
def test_python_in_the_pages_is_python(text: str) -> None:
    compile(text, "page", "exec")


@pytest.mark.parametrize("path", ["docs/images/rooms.svg", "docs/images/stages.svg", "docs/architecture.md"])
def test_pictures_and_tables_of_the_rooms_are_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == graphs.files()[path], "run: python -m docs"


def test_a_graph_is_drawn_without_arrows_that_follow_and_never_with_a_cycle() -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set[str]()}
    assert drawing.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert drawing.svg(graph, {"a": "x < y"}, "title").count("<path") == 2
    with pytest.raises(ValueError, match="a -> b -> a"):
        drawing.svg({"a": {"b"}, "b": {"a"}}, {}, "title")


def test_the_stages_are_drawn_with_what_they_write() -> None:
    stages = graphs.stages()
    assert stages["fetch"] == {"prepare", "baseline"}
    assert stages["evaluate@train"] == {"register"}
    assert "models/champion/" in graphs.files()["docs/images/stages.svg"]


@pytest.mark.slow
def test_commands_run_as_they_are_written(tmp_path: Path) -> None:
    """In a clone whose table is the one of the README, made small; a copy of it for each page."""
    finished = own_table(tmp_path / "finished")
    for page, text in TEXTS.items():
        commands = [block.text for block in blocks(text) if block.language == "sh" and block.reason is None]
        if commands:
            folder = tmp_path / page.replace("/", "-")
            shutil.copytree(finished, folder, symlinks=True)
            for command in commands:
                run(folder, page, command)
    for text in TEXTS.values():
        for block in blocks(text):
            if block.language == "sh" and block.reason and block.text.startswith("make"):
                call(finished, "make", "-n", *block.text.split()[1:])


def own_table(folder: Path) -> Path:
    """A finished project of the table and parameters that README.md shows, and new rows to predict."""
    (text,) = (block.text for block in blocks(TEXTS["README.md"]) if block.language == "yaml")
    shown = YAML(typ="safe", pure=True).load(text)
    changes = {f"{section}.{key}": value for section, keys in shown.items() for key, value in keys.items()}
    clone(folder, {**SMALL, **changes})
    table = load_diabetes(as_frame=True).frame.rename(columns={"target": "price"})
    table.to_csv(folder / "data/source/mine.csv", index=False)
    table.drop(columns="price").head(20).to_csv(folder / "new.csv", index=False)
    for command in ("dvc repro", "git add --all", "git commit --quiet --message results"):
        run(folder, "README.md", command)
    return folder


def run(folder: Path, page: str, commands: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=folder, env=environment(), capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{page}: {commands}\n{done.stdout}\n{done.stderr}"
