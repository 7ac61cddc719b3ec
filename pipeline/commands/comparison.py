"""Describe how two versions of a file differ: by cell, by key, by layer or by byte."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load


def difference(name: str, old: bytes, new: bytes) -> str:
    """Describe the difference between two contents of a file, read by the suffix of `name`; empty if there is none."""
    if old == new:
        return ""
    readers = {".csv": _in_csv, ".json": _in_json, ".safetensors": _in_tensors}
    reader = readers.get(PurePath(name).suffix, _in_bytes)
    try:
        # Equal values can be written as different bytes.
        return reader(old, new) or _in_bytes(old, new)
    except (ValueError, KeyError, ArithmeticError, RecursionError, SafetensorError, csv.Error):
        return _in_bytes(old, new)  # one of them is not in the format of its suffix


def _in_bytes(old: bytes, new: bytes) -> str:
    shorter = min(len(old), len(new))
    place = next((k for k, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), shorter)
    sizes = "" if len(old) == len(new) else f"; {len(new):,} bytes, was {len(old):,}"
    if place == shorter:
        return f"identical up to byte {place:,}{sizes}"
    return f"differs from byte {place:,}: 0x{new[place]:02x}, was 0x{old[place]:02x}{sizes}"


def _in_csv(old: bytes, new: bytes) -> str:
    (old_head, *old_rows), (new_head, *new_rows) = (
        list(csv.reader(io.StringIO(content.decode(), newline=""))) or [[]] for content in (old, new)
    )
    if old_head != new_head:
        return f"columns {', '.join(new_head)}; were {', '.join(old_head)}"
    if len(old_rows) != len(new_rows):
        return f"{len(new_rows):,} rows, were {len(old_rows):,}"
    return _of_values(_cells(old_head, old_rows), _cells(new_head, new_rows))


def _cells(head: list[str], rows: list[list[str]]) -> dict[str, float | str]:
    return {
        f"{column}, row {k}": _number(cell)
        for k, row in enumerate(rows, start=1)
        for column, cell in zip(head, row, strict=True)
    }


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _in_json(old: bytes, new: bytes) -> str:
    return _of_values(dict(_leaves(json.loads(old))), dict(_leaves(json.loads(new))))


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if not items:
        yield name, value
        return
    for key, item in items:
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _of_values(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe the largest numeric difference, else the first other difference, else the first added name."""
    largest, where = 0.0, ""
    for name, value in old.items():
        if _are_numbers(value, new.get(name)) and (distance := _distance(value, new[name])) > largest:
            largest, where = distance, name
    if where:
        return f"differs by up to {largest:.3g}, at {where}: {new[where]!r}, was {old[where]!r}"
    for name, value in old.items():
        if name not in new:
            return f"lacks {name}"
        if new[name] != value and not _are_numbers(value, new[name]):
            return f"{name}: {_short(new[name])}, was {_short(value)}"
    return next((f"adds {name}" for name in new if name not in old), "")


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _distance(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return math.inf if math.isnan(a) or math.isnan(b) else abs(a - b)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:23]}…"


def _in_tensors(old: bytes, new: bytes) -> str:
    before, after = _in_order(old), _in_order(new)
    for name, a in before.items():
        if name not in after:
            return f"lacks {name}"
        b = after[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"{name}: {b.dtype} {list(b.shape)}, was {a.dtype} {list(a.shape)}"
        if a.tobytes() != b.tobytes():
            x, y = a.astype(float), b.astype(float)
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            with np.errstate(invalid="ignore"):  # inf - inf
                distances = np.where(same, 0.0, np.nan_to_num(np.abs(y - x), nan=np.inf, posinf=np.inf))
            n_different = f"{np.count_nonzero(distances):,} of {a.size:,} numbers differ"
            return f"{name}: {n_different}, by up to {distances.max():.3g}"
    return next((f"adds {name}" for name in after if name not in before), "")


def _in_order(content: bytes) -> dict[str, Any]:
    """Tensors by name, in the order of the layers: 2 before 10."""
    tensors = load(content)
    parts = {name: [(int(p), "") if p.isdigit() else (-1, p) for p in name.split(".")] for name in tensors}
    return {name: tensors[name] for name in sorted(tensors, key=lambda name: parts[name])}
