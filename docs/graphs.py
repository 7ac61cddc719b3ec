"""Draw which room of `pipeline/` imports which, and which stage of `dvc.yaml` needs which; list the rooms."""

import ast
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from docs import drawing
from docs.pages import ROOT, fill, table

PACKAGE = ROOT / "pipeline"
ARCHITECTURE = ROOT / "docs/architecture.md"


def rooms() -> dict[str, set[str]]:
    """The rooms that each room imports, anywhere in its modules."""
    found: dict[str, set[str]] = {folder.name: set() for folder in _folders(PACKAGE)}
    for room, imported in found.items():
        for path in sorted((PACKAGE / room).rglob("*.py")):
            imported |= {name.split(".")[1] for name in _imports(path) if name.split(".")[1] in found}
        imported.discard(room)
    return found


def stages() -> dict[str, set[str]]:
    """The stages that each stage's outputs go to, with every instance of a matrix."""
    needs, makes = dict[str, set[str]](), dict[str, str]()
    for name, stage in _dvc().items():
        for item in stage.get("matrix", {}).get("model", [None]):
            instance = f"{name}@{item}" if item else name
            deps, outs = (
                [str(path).replace("${item.model}", str(item)) for path in stage.get(key, [])]
                for key in ("deps", "outs")
            )
            needs[instance] = set(deps)
            makes |= dict.fromkeys(outs, instance)
    return {
        stage: {other for other, deps in needs.items() if any(makes.get(path) == stage for path in deps)}
        for stage in needs
    }


def room_table() -> str:
    """Each room with its question, what it imports, and the stages that rerun after an edit in it."""
    rows = [("room", "what it answers", "imports", "an edit reruns")]
    watched = {name: [str(path) for path in stage["deps"]] for name, stage in _dvc().items()}
    for room, imported in rooms().items():
        lines = (ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or "").splitlines()
        folder = f"pipeline/{room}"
        reruns = [name for name, deps in watched.items() if any(path.startswith(folder) for path in deps)]
        said = "the edited stage" if room == "stages" else ", ".join(reruns) or "nothing"
        said = "every stage" if len(reruns) == len(watched) and room != "stages" else said
        rows.append((f"`{room}/`", lines[0], ", ".join(sorted(imported)) or "none", said))
    return table(rows)


def files() -> dict[str, str]:
    """The generated pictures and tables by their path, as they must be."""
    return {
        "docs/images/rooms.svg": drawing.svg(rooms(), {}, "Which room of pipeline/ imports which"),
        "docs/images/stages.svg": drawing.svg(stages(), _outs(), "Stages of dvc.yaml and what they write"),
        "docs/architecture.md": fill(ARCHITECTURE.read_text(encoding="utf-8"), {"rooms": room_table()}),
    }


def _outs() -> dict[str, str]:
    outs = {}
    for name, stage in _dvc().items():
        for item in stage.get("matrix", {}).get("model", [None]):
            out = str(stage["outs"][0]).replace("${item.model}", str(item))
            outs[f"{name}@{item}" if item else name] = f"{out}/"
    return outs


def _dvc() -> dict[str, dict[str, Any]]:
    loaded = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return dict(loaded["stages"])


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if (folder / "__init__.py").is_file())


def _imports(path: Path) -> set[str]:
    """The modules of the project that a file names in an import, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("pipeline.")}
