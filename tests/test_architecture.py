"""Who may import whom, and that DVC watches every file a stage runs."""

import ast
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.imports import PACKAGE, ROOT, closure, imports, path_of

# What each module may import of ours; stages and commands may import all of these.
GROUND = {
    "errors": set(),
    "files": {"errors"},
    "locks": {"errors"},
    "console": {"errors", "locks"},
    "settings": set(),
    "config": {"errors", "files", "settings"},
    "processes": {"errors"},
    "processor": {"config", "errors"},
}
TABLE = {
    "schema": {"errors", "files", "settings"},
    "datasets": {"errors", "files", "schema", "settings"},
    "data": {"errors", "files", "schema", "settings"},
    "preprocessing": {"errors", "files", "schema"},
    "preparation": {"data", "errors", "files", "preprocessing", "schema", "settings"},
}
NETWORK = {
    "metrics": {"schema", "settings"},
    "model": {"errors", "schema", "settings"},
    "optimizers": {"settings"},
    "layers": {"model"},
    "stack": {"layers", "model"},
    "training": {"data", "errors", "layers", "metrics", "model", "optimizers", "schema", "settings", "stack"},
    "checkpoints": {"files", "training"},
    "calibration": {"metrics", "settings"},
    "bundle": {
        "calibration",
        "data",
        "errors",
        "files",
        "metrics",
        "model",
        "preprocessing",
        "schema",
        "settings",
        "training",
    },
    "finetuning": {"bundle", "data", "model", "schema", "settings", "training"},
    "search": {
        "checkpoints",
        "config",
        "data",
        "errors",
        "metrics",
        "model",
        "processes",
        "schema",
        "settings",
        "training",
    },
}
JUDGEMENT = {
    "figures": {"files"},
    "evaluation": {"data", "errors", "figures", "files", "metrics", "schema"},
    "baseline": {"preprocessing", "schema"},
    "champion": {"bundle", "errors", "metrics", "settings"},
}
EDGE = {
    "spool": set(),
    "versions": {"config"},
    "delivery": {"errors", "settings", "spool", "versions"},
    "tracking": {"config", "console", "delivery", "settings", "spool", "versions"},
    "objects": {"versions"},
    "sync": {"config", "delivery", "errors", "objects", "settings", "spool", "tracking", "versions"},
    "serving": {"bundle"},
    "comparison": set(),
    "verify": {"comparison", "console", "errors", "objects", "versions"},
    "doctor": {
        "bundle",
        "checkpoints",
        "config",
        "delivery",
        "errors",
        "locks",
        "objects",
        "settings",
        "spool",
        "versions",
    },
}
MAY_IMPORT = GROUND | TABLE | NETWORK | JUDGEMENT | EDGE
STAGES = sorted(path.stem for path in (PACKAGE / "stages").glob("*.py") if path.stem != "__init__")
DVC = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())


def test_every_module_stands_in_the_table() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "cli"}
    assert modules == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    found = {name.removeprefix("pipeline.") for name in imports(Path(f"pipeline/{module}.py"))}
    assert found <= MAY_IMPORT[module]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage_and_no_command(stage: str) -> None:
    found = imports(Path(f"pipeline/stages/{stage}.py"))
    assert found <= {f"pipeline.{module}" for module in MAY_IMPORT}


@pytest.mark.parametrize("library", ["mlflow", "dvc"])
def test_the_core_knows_neither_dvc_nor_mlflow(library: str) -> None:
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == library for name in names):
                users.add(path.stem)
    assert users <= {"delivery", "serving", "doctor"}  # serving is what MLflow itself runs to load a model


def test_each_stage_of_dvc_is_a_module_and_back() -> None:
    assert sorted(DVC["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_every_module_a_stage_runs_and_no_other(stage: str) -> None:
    needed = closure(path_of(f"pipeline.stages.{stage}"))
    if any("run.log_model(" in (ROOT / path).read_text() for path in needed) or stage == "register":
        needed |= closure(Path("pipeline/serving.py"))  # MLflow runs it, nobody imports it
    watched = {Path(dep) for dep in DVC["stages"][stage]["deps"] if dep.startswith("pipeline/")}
    assert watched == needed


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_the_pinned_libraries(stage: str) -> None:
    assert "constraints.txt" in DVC["stages"][stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_every_section_of_params_that_a_stage_names(stage: str) -> None:
    source = (PACKAGE / "stages" / f"{stage}.py").read_text()
    read = set(re.findall(r"settings\.([a-z]+)_?\b(?!\()", source)) - {"model_dump", "tracking", "data"}
    watched = {name.split(".")[0] for name in DVC["stages"][stage]["params"]}
    assert read <= watched
