"""Which room may import which, what DVC watches of each stage, and what a stage imports before it starts."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.imports import PACKAGE, ROOT, closure, imports, path_of, room_of

# What each room may import of the others. A stage may also import its own folder, and no other stage.
MAY_IMPORT = {
    "core": set(),
    "tables": {"core"},
    "sources": {"core", "tables"},
    "networks": {"core", "tables"},
    "training": {"core", "tables", "networks"},
    "evaluation": {"core", "tables", "networks"},
    "runtime": {"core"},
    "tracking": {"core", "runtime"},
    "stages": {"core", "tables", "sources", "networks", "training", "evaluation", "tracking", "runtime"},
    "commands": {"core", "tables", "sources", "networks", "training", "evaluation", "tracking", "runtime"},
}
# The rooms that the outputs of a stage follow, besides core and its own folder: editing another one reruns nothing.
FOLLOWS = {
    "fetch": {"sources", "tables"},
    "prepare": {"tables"},
    "baseline": {"tables", "networks", "evaluation"},
    "train": {"tables", "networks", "training"},
    "finetune": {"tables", "networks", "training"},
    "search": {"tables", "networks", "training"},
    "evaluate": {"tables", "networks", "evaluation"},
    "register": {"tables", "networks"},
}
# The libraries that take long to import, and which of them each stage imports at its start.
SLOW = {"dvc", "matplotlib", "mlflow", "optuna", "pandas", "scipy", "sklearn", "torch", "torchmetrics"}
IMPORTS = {
    "fetch": {"pandas"},
    "prepare": {"pandas", "torch"},
    "baseline": {"pandas", "torch", "torchmetrics", "matplotlib", "scipy"},
    "train": {"pandas", "torch", "scipy"},
    "finetune": {"pandas", "torch", "scipy"},
    "search": {"pandas", "torch", "scipy", "optuna", "matplotlib"},
    "evaluate": {"pandas", "torch", "torchmetrics", "matplotlib", "scipy"},
    "register": {"pandas", "torch"},
}
STAGES = sorted(FOLLOWS)
MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))
DVC = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())


def test_each_room_is_in_the_table() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)
    assert {path.parent.name for path in (PACKAGE / "stages").glob("*/stage.py")} == set(STAGES) == set(DVC["stages"])


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    for module in (PACKAGE / room).rglob("*.py"):
        for name in imports(module.relative_to(ROOT)):
            assert room_of(path_of(name)) in MAY_IMPORT[room] | {room}, f"{module} imports {name}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage: str) -> None:
    for module in (PACKAGE / "stages" / stage).glob("*.py"):
        other = {name for name in imports(module.relative_to(ROOT)) if name.startswith("pipeline.stages.")}
        assert all(name.startswith(f"pipeline.stages.{stage}.") for name in other)


def test_no_modules_import_each_other() -> None:
    graph = {module: {path_of(name) for name in imports(module)} for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_importing_a_module_only_defines(module: Path) -> None:
    for node in ast.parse((ROOT / module).read_text()).body:
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            # MLflow loads a model by running this file, which has to call set_model.
            assert module.name == "mlflow_model.py", f"{module}, line {node.lineno}"
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"), (
                f"{module}, line {node.lineno}"
            )
        assert not isinstance(node, ast.For | ast.While | ast.With | ast.Try), f"{module}, line {node.lineno}"


@pytest.mark.parametrize("library", ["mlflow", "dvc"])
def test_only_tracking_and_commands_know_dvc_and_mlflow(library: str) -> None:
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / module).read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == library for name in names):
                assert room_of(module) in ("tracking", "commands"), module


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_the_rooms_that_outputs_follow(stage: str) -> None:
    watched = {dep.removeprefix("pipeline/") for dep in DVC["stages"][stage]["deps"] if dep.startswith("pipeline/")}
    assert watched == {"core", f"stages/{stage}"} | FOLLOWS[stage]
    needed = {room_of(path) for path in closure(path_of(f"pipeline.stages.{stage}.stage"))} - {"tracking", "runtime"}
    assert needed == {"core", "stages"} | FOLLOWS[stage]
    assert "constraints.txt" in DVC["stages"][stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_every_section_of_params_that_a_stage_names(stage: str) -> None:
    source = (PACKAGE / "stages" / stage / "stage.py").read_text()
    read = set(re.findall(r"settings\.([a-z]+)_?\b(?!\()", source)) - {"model_dump", "tracking", "data"}
    watched = {name.split(".")[0] for name in DVC["stages"][stage]["params"]}
    assert read <= watched


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_starts_with_what_it_uses_and_no_more(stage: str) -> None:
    code = f"import sys, pipeline.stages.{stage}.stage; print(*({SLOW} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == IMPORTS[stage]


def test_no_test_imports_from_another_test_or_from_a_conftest() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            parts = {part for name in names for part in name.split(".")}
            assert not {part for part in parts if part.startswith("test_") or part == "conftest"}, path
