"""What a module of the project imports, read from its source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pipeline"


def path_of(module: str) -> Path:
    """The file of a dotted module name, relative to the project."""
    return Path(*module.split(".")).with_suffix(".py")


def imports(path: Path) -> set[str]:
    """The project's own modules that the file at `path` (relative to the project) names in an import, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("pipeline.") and (ROOT / path_of(name)).is_file()}


def room_of(path: Path) -> str:
    """The room that a file of the package, relative to the project, is in; "" for one outside of all rooms."""
    return path.parts[1] if len(path.parts) > 2 else ""


def closure(path: Path) -> set[Path]:
    """The files that running `path` needs: itself, what it imports, what that imports, and so on."""
    seen, todo = set(), [path]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += [path_of(name) for name in imports(current)]
    return seen
