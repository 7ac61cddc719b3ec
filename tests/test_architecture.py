"""Who may import whom, and that DVC watches every file a stage runs."""

import ast
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.imports import PACKAGE, ROOT, closure, imports, path_of

STAGES = sorted(path.parent.name for path in (PACKAGE / "stages").glob("*/stage.py"))
DVC = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage_and_no_command(stage: str) -> None:
    for path in (PACKAGE / "stages" / stage).glob("*.py"):
        for name in imports(path.relative_to(ROOT)):
            room, _, rest = name.removeprefix("pipeline.").partition(".")
            assert room != "commands"
            assert room != "stages" or rest.partition(".")[0] == stage


@pytest.mark.parametrize("library", ["mlflow", "dvc"])
def test_the_core_knows_neither_dvc_nor_mlflow(library: str) -> None:
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == library for name in names):
                users.add(path.stem)
    assert users <= {"delivery", "mlflow_model", "doctor"}  # mlflow_model is what MLflow itself runs to load a model


def test_each_stage_of_dvc_is_a_module_and_back() -> None:
    assert sorted(DVC["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_every_module_a_stage_runs_and_no_other(stage: str) -> None:
    needed = closure(path_of(f"pipeline.stages.{stage}.stage"))
    if any("run.log_model(" in (ROOT / path).read_text() for path in needed) or stage == "register":
        needed |= closure(Path("pipeline/commands/mlflow_model.py"))  # MLflow runs it, nobody imports it
    watched = {Path(dep) for dep in DVC["stages"][stage]["deps"] if dep.startswith("pipeline/")}
    assert watched == needed


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_the_pinned_libraries(stage: str) -> None:
    assert "constraints.txt" in DVC["stages"][stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_every_section_of_params_that_a_stage_names(stage: str) -> None:
    source = (PACKAGE / "stages" / stage / "stage.py").read_text()
    read = set(re.findall(r"settings\.([a-z]+)_?\b(?!\()", source)) - {"model_dump", "tracking", "data"}
    watched = {name.split(".")[0] for name in DVC["stages"][stage]["params"]}
    assert read <= watched


def test_no_test_imports_from_another_test_or_from_a_conftest() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            parts = {part for name in names for part in name.split(".")}
            assert not {part for part in parts if part.startswith("test_") or part == "conftest"}, path
