"""Load `params.yaml` as a `Config` and write values back; report an error in it with place, rule and value in one line."""

import difflib
import itertools
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node
from ruamel.yaml.representer import RoundTripRepresenter

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.secrets import without_secret
from pipeline.core.settings import NOT_SEARCHED, PRESET, STRONG, Config, fields_at

PATH = Path("params.yaml")
# Limits on a file of parameters: size, values with aliases expanded, depth of brackets.
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 2**16, 20_000, 500
# Parameters of several types; pydantic adds the type that it tried to their location.
_UNION = r"(finetune\.freeze|model\.ensemble|train\.batch_size|train\.epochs|data\.transfer\.values\.\d+)\."


def load(path: Path = PATH) -> Config:
    """Read and validate `params.yaml`; raises `UserError` with file, line, dotted name, rule and value."""
    text = _text(path)
    try:
        return from_mapping(yaml_values(path, text))
    except _RefusedError as error:
        raise UserError(f"{path}{_line(text, error.location)}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read sections of plain values; raises `UserError` if the file is not YAML or exceeds a limit."""
    return yaml_values(path, _text(path))


def _text(path: Path) -> str:
    if not path.is_dir() and not path.is_file():  # reading a pipe would block
        raise UserError(f"{path} is missing: run this in the project folder")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content[:MAX_BYTES].decode("utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} must be at most {MAX_BYTES // 1024} KiB long")
    return text


def yaml_values(path: Path, text: str) -> dict[str, Any]:
    """Parse the text of the file `path` as `read_yaml` does."""
    # Checked before parsing, whose time grows with the square of the depth.
    opened = {"[": 1, "{": 1, "]": -1, "}": -1}
    if max(itertools.accumulate((opened.get(mark, 0) for mark in text), initial=0)) > MAX_DEPTH:
        raise UserError(f"{path} is not YAML: brackets are nested more than {MAX_DEPTH} deep")
    try:
        if "&" in text and _size(_read(text, "safe", YAML.compose), {}) > MAX_VALUES:
            raise UserError(f"{path} must hold at most {MAX_VALUES:,} values with its aliases expanded")
        values = _read(text, "safe")  # YAML 1.2, as DVC reads it: 1e-3 is a number
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else "a key"
        raise UserError(f"{path}, line {error.problem_mark.line + 1}: duplicate key {key}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{path}, line {mark.line + 1 if mark else '?'}: not YAML: {error.problem}") from None
    except UserError:
        raise
    except (LookupError, AttributeError):  # raised by ruamel.yaml for values such as `!!bool maybe` or `!!int ''`
        raise UserError(f"{path} is not YAML: a value does not have the type of its tag") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections such as data and train, got {type(values).__name__}")
    return values


def _size(node: Node | None, known: dict[int, int]) -> int:
    """Count the values of a node with its aliases expanded."""
    if not isinstance(node, CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # the size of a node that contains itself
        parts = itertools.chain(*node.value) if isinstance(node, MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _read(text: str, kind: Literal["safe", "rt"], how: Callable[[YAML, str], Any] = YAML.load) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YAMLWarning)  # such as for an anchor defined twice, which YAML allows
        return how(YAML(typ=kind, pure=True), text)


class _RefusedError(UserError):
    """A value that breaks a rule, and its location."""

    def __init__(self, location: tuple[str | int, ...], message: str) -> None:
        self.location = location
        super().__init__(message)


def from_mapping(values: Mapping[str, Any]) -> Config:
    """Validate plain values, and the ends of each searched range; raises `UserError` with name, rule and value."""
    config = _validated(_with_preset(values))
    plain = config.model_dump(mode="json", by_alias=True)
    known = [name for name in flatten(plain) if name.startswith(("model.", "train."))]
    for name, space in config.search.space.items():
        here = ("search", "space", name)
        if name.startswith(NOT_SEARCHED):
            raise _RefusedError(here, f"search.space.{name} has no effect on a trial")
        if name not in known:
            raise _RefusedError(here, f"search.space.{name} must be in model or train{_nearest(name, known)}")
        for value in space.ends:
            try:
                whole = isinstance(value, float) and value.is_integer()
                _validated(_with_preset(_patched(plain, {name: int(value) if whole else value})))
            except _RefusedError as error:
                raise _RefusedError(here, f"search.space.{name}: {error}") from None
    return config


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """Copy a configuration with new values by dotted name, and validate it."""
    return from_mapping(_patched(config.model_dump(mode="json", by_alias=True), values))


def adopt(patch: Mapping[str, Any], path: Path = PATH) -> dict[str, tuple[Any, Any]]:
    """Write the leaves of `patch` into `params.yaml`, keep its comments, and return old and new values by dotted name."""
    leaves = flatten(patch)
    replaced(load(path), leaves)  # raises before anything is written
    yaml = YAML()
    _Representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096
    tree = yaml.load(path.read_text(encoding="utf-8"))
    changes = {name: (_put(tree, name, value), value) for name, value in leaves.items()}
    files.write_text(path, dump_yaml(tree, yaml))
    return changes


class _Representer(RoundTripRepresenter):
    """Write None as `null`, not as an empty value."""


def dump_yaml(values: Any, yaml: YAML | None = None) -> str:
    buffer = StringIO()
    (yaml or YAML()).dump(values, buffer)
    return buffer.getvalue()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted names; an empty section is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_section = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return flat


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return _patched({}, leaves)


def _patched(values: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    patched = json.loads(json.dumps(values))
    for name, value in leaves.items():
        _put(patched, name, value)
    return dict(patched)


def _put(tree: dict[str, Any], name: str, value: Any) -> Any:
    """Set a dotted name, creating missing sections; returns the old value."""
    *sections, key = name.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    old = tree.get(key)
    tree[key] = value
    return old


def _with_preset(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in the values of `train.preset` where a value is missing or `preset`."""
    train = values.get("train", {})
    strong = not isinstance(train, Mapping) or train.get("preset", "strong") == "strong"
    filled = dict(values)
    for name, value in STRONG.items():
        section, key = name.split(".")
        written = filled.get(section, {})
        if isinstance(written, Mapping) and written.get(key, PRESET) == PRESET:
            rest = {name: other for name, other in written.items() if name != key}
            filled[section] = rest | ({key: value} if strong else {})
    return filled


def _validated(values: Mapping[str, Any]) -> Config:
    try:
        # Via JSON, since pydantic's strict mode accepts a JSON array as a tuple, but not a Python list.
        return Config.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        errors = error.errors()
        raise _RefusedError(errors[0]["loc"], _message(errors)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _RefusedError((), f"must map names to plain values: {error}") from None


def _message(errors: Sequence[Any]) -> str:
    """Format the first of pydantic's errors as `name rule, got value`."""
    error = errors[0]
    name = _name(error["loc"])
    match error["type"]:
        case "extra_forbidden":
            known = list(fields_at(error["loc"][:-1]))
            return f"{name} is not a known key{_nearest(error['loc'][-1], known)}"
        case "json_invalid":
            return "holds text that is not Unicode"
        case "missing":
            return f"{name} is missing"
        case "value_error":
            text = str(error["ctx"]["error"])
            return f"{name}: {text}" if name else text
        case "string_pattern_mismatch" if name == "data.split.by":
            return f"{name} must be random, time:<column> or group:<column>, got {_shown(error)}"
        case _:  # for a parameter of several types, an error for each of them
            rules = [re.sub("(Input|String) should", "must", one["msg"]) for one in errors if _name(one["loc"]) == name]
            return f"{name} {' or '.join(rules)}, got {_shown(error)}"


def _shown(error: Any) -> str:
    value = without_secret(repr(error["input"]))
    return value if len(value) <= 80 else value[:79] + "…"


def _name(location: tuple[str | int, ...]) -> str:
    name = ".".join(map(str, location))
    union = re.match(_UNION, name)
    return union[1] if union else name


def _nearest(name: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _line(text: str, location: tuple[str | int, ...]) -> str:
    """Return `, line N` for the deepest part of `location` that is in the file."""
    try:
        node, line = _read(text, "rt"), None
    except RecursionError:  # this reader recurses deeper than the one that read the values
        return ""
    for key in location:
        try:
            line = (node.lc.item(key) if isinstance(key, int) else node.lc.key(key))[0] + 1
            node = node[key]
        except (AttributeError, KeyError, TypeError, IndexError):
            continue
    return f", line {line}" if line else ""
