"""Write the tables of the parameters and presets, and the list of public keys, from the code and `dvc.yaml`.

`python -m docs` writes the pages; `python -m docs.reference` prints `params.yaml` with the comments that it must have.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML

from docs.pages import ROOT, fill, table
from pipeline.core.config import flatten
from pipeline.core.secrets import PUBLIC_KEYS
from pipeline.core.settings import (
    AUTO_BATCH,
    AUTO_EPOCHS,
    AUTO_STEPS,
    LARGE_ENSEMBLE,
    SMALL_ENSEMBLE,
    SMALL_ROWS,
    STRONG,
    Config,
)

SCHEMA = Config.model_json_schema(by_alias=True)
MOST_LISTED = 6  # allowed values that a comment lists

AUTO = {  # the value that `auto` gives
    "model.ensemble": f"{SMALL_ENSEMBLE} below {SMALL_ROWS:,} training rows, else {LARGE_ENSEMBLE}",
    "train.batch_size": f"a hundredth of the rows as a power of two, from {AUTO_BATCH[0]} to {AUTO_BATCH[1]}",
    "train.epochs": f"{AUTO_EPOCHS}, or enough for {AUTO_STEPS:,} steps",
}


def properties(prefix: str = "", schema: dict[str, Any] = SCHEMA) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every parameter and section by its dotted name, sections before what they hold."""
    for key, value in schema["properties"].items():
        yield f"{prefix}{key}", value
        if inner := _section(value):
            yield from properties(f"{prefix}{key}.", inner)
        elif inner := _section(value.get("additionalProperties") or {}):
            yield from properties(f"{prefix}{key}.<parameter>.", inner)


def comment(parameter: dict[str, Any]) -> str:
    """The comment of a parameter in `params.yaml`: its description, then the allowed values where they are few."""
    values = parameter.get("enum", [])
    listed = f": {' | '.join(values)}" if 2 <= len(values) <= MOST_LISTED else ""
    return f"{parameter['description']}{listed}"


def allowed(parameter: dict[str, Any]) -> str:
    """The types and bounds of a parameter, in words."""
    if options := parameter.get("anyOf"):
        return ", ".join(map(allowed, options))
    if "$ref" in parameter:
        return "keys below"
    if "const" in parameter or "enum" in parameter:
        return ", ".join(_code(value) for value in parameter.get("enum", [parameter.get("const")]))
    match parameter.get("type"):
        case "null":
            return "`null`"
        case "boolean":
            return "`true`, `false`"
        case "integer" | "number" as kind:
            return f"{kind}{_bounds(parameter)}"
        case "array":
            if "prefixItems" in parameter:
                return f"[{', '.join(map(allowed, parameter['prefixItems']))}]"
            inner = allowed(parameter["items"])
            return f"list of {inner}" if inner else "list"
        case "object":
            return f"{allowed(parameter['additionalProperties'])}, by name"
        case "string":
            return "text"
    return ""


def default(name: str, parameter: dict[str, Any]) -> str:
    """What a parameter is if it is left out."""
    if name in STRONG:
        return f"{_code(STRONG[name])} (preset)"
    if _section(parameter) and parameter.get("default"):
        return "keys below"
    return _code(parameter["default"]) if "default" in parameter else "required"


def readers() -> dict[str, list[str]]:
    """The stages that read a parameter or section, from the `params` of dvc.yaml."""
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {
        name: [
            stage
            for stage, settings in stages.items()
            if any(f"{name}.".startswith(f"{read}.") for read in settings["params"])
        ]
        for name, _ in properties()
    }


def parameter_tables() -> str:
    """A table for the parameters without a section, and one a section."""
    stages, parts, rows = readers(), list[str](), list[tuple[str, ...]]()
    head = ("parameter", "default", "allowed", "meaning", "read by")

    def close() -> None:
        if rows:
            parts.append(table([head, *rows]))
        rows.clear()

    parts.append("## Top level")
    for name, value in properties():
        if _section(value) and "." not in name:
            close()
            parts.append(f"## {name}\n\n{value['description']}.")
        elif not _section(value) or "anyOf" in value:
            text = value["description"].replace("|", r"\|").replace("<", "&lt;")
            read = ", ".join(stages[name]) or "none"
            rows.append((f"`{name}`", default(name, value), allowed(value), text, read))
    close()
    return "\n\n".join(parts)


def preset_table() -> str:
    """What the two presets stand for."""
    textbook = flatten(_defaults())
    rows = []
    for name, strong in STRONG.items():
        shown = f"{_code(strong)}: {AUTO[name]}" if strong == "auto" else _code(strong)
        rows.append((f"`{name}`", shown, _code(textbook[name])))
    return table([("parameter", "`strong`", "`textbook`"), *rows])


def params_comments() -> dict[str, str]:
    """The comment of each key of `params.yaml`; the headings of sections and the ranges of search.space have none."""
    return {name: comment(value) for name, value in properties() if "<" not in name}


def commented() -> str:
    """`params.yaml` with the comments of `params_comments`, its values as they are."""
    comments, section, lines = params_comments(), "", []
    for line in (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines():
        found = re.match(r"( *)([\w]+):", line)
        if found and not found[1]:
            section = found[2]
        name = f"{section}.{found[2]}" if found and found[1] else section
        code = re.sub(r"\s+#.*", "", line)
        if not found or name not in comments:
            lines.append(line)
        elif found[1] or not code.endswith(":"):
            lines.append(f"{code:<26}   # {comments[name]}")
        else:  # the heading of a section
            lines.append(code)
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """The generated pages by their path, as they must be."""
    blocks = {
        "docs/parameters.md": {"parameters": parameter_tables()},
        "docs/presets.md": {"presets": preset_table()},
        "docs/security.md": {"public": ", ".join(f"`{key}`" for key in sorted(PUBLIC_KEYS))},
    }
    return {path: fill((ROOT / path).read_text(encoding="utf-8"), found) for path, found in blocks.items()}


def _section(parameter: dict[str, Any]) -> dict[str, Any] | None:
    options = [parameter, *parameter.get("anyOf", [])]
    names = [option["$ref"].rpartition("/")[2] for option in options if "$ref" in option]
    return SCHEMA["$defs"][names[0]] if names else None


def _defaults() -> dict[str, Any]:
    named = {"data": "Data", "model": "Model", "train": "Train"}
    return {
        section: {key: value.get("default") for key, value in SCHEMA["$defs"][kind]["properties"].items()}
        for section, kind in named.items()
    }


def _bounds(parameter: dict[str, Any]) -> str:
    low, above = parameter.get("minimum"), parameter.get("exclusiveMinimum")
    high, below = parameter.get("maximum"), parameter.get("exclusiveMaximum")
    start = f"[{_number(low)}" if low is not None else f"({_number(above)}" if above is not None else ""
    end = f"{_number(high)}]" if high is not None else f"{_number(below)})" if below is not None else ""
    return f" in {start}, {end}" if start and end else f" from {low}" if low is not None else ""


def _number(value: float) -> str:
    """1e9 and 2^32 for what is hard to count, else all digits."""
    if value >= 10**6:
        power = math.log10(value)
        return f"1e{power:.0f}" if power.is_integer() else f"2^{math.log2(value):.0f}"
    return f"{value:,g}" if value < 1000 else f"{value:,.0f}"


def _code(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.replace("\t", r"\t").replace("|", r"\|")
    return f"`{text}`"


if __name__ == "__main__":
    print(commented(), end="")
