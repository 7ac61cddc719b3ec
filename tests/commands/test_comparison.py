"""Descriptions of how a file differs."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save

from pipeline.commands.comparison import difference

CSV = b"epoch,val_loss,lr\n1,0.5,0.1\n2,0.25,0.1\n"
LAYERS = {f"network.{k}.weight": np.ones((2, 3), np.float32) for k in (2, 10)} | {"codes": np.arange(4)}


def layers(name: str, value: np.ndarray) -> bytes:
    return save(LAYERS | {name: value})


def with_one(value: float) -> np.ndarray:
    changed = np.ones((2, 3), np.float32)
    changed[1, 2] = value
    return changed


@pytest.mark.parametrize(
    ("name", "new", "says"),
    [
        ("h.csv", CSV.replace(b"0.25", b"0.5"), "differs by up to 0.25, at val_loss, row 2: 0.5, was 0.25"),
        ("h.csv", CSV.replace(b"0.25", b"nan"), "differs by up to inf, at val_loss, row 2: nan, was 0.25"),
        ("h.csv", CSV.replace(b"0.25", b"none"), "val_loss, row 2: 'none', was 0.25"),
        ("h.csv", CSV.replace(b"lr", b"rate"), "columns epoch, val_loss, rate; were epoch, val_loss, lr"),
        ("h.csv", CSV + b"3,0.1,0.1\n", "3 rows, were 2"),
        ("h.csv", CSV.replace(b"0.25", b"0.250"), "differs from byte 34: 0x30, was 0x2c; 40 bytes, was 39"),
        ("h.csv", b"\xff\xfe", "differs from byte 0: 0xff, was 0x65; 2 bytes, was 39"),
        ("h.csv", CSV[:-2], "lr, row 2: 0.0, was 0.1"),
        ("h.csv", CSV[:-6], "identical up to byte"),
        ("h.png", CSV[:10], "identical up to byte 10; 10 bytes, was 39"),
        ("h.png", b"X" + CSV[1:], "differs from byte 0: 0x58, was 0x65"),
    ],
)  # fmt: skip
def test_csv_and_other_files(name: str, new: bytes, says: str) -> None:
    assert says in difference(name, CSV, new)


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ({"test": {"loss": [1, 2.5]}, "name": "a"}, "differs by up to 0.5, at test.loss.1: 2.5, was 2"),
        ({"test": {"loss": [1, 2]}, "name": "b"}, "name: 'b', was 'a'"),
        ({"test": {"loss": [1, True]}, "name": "a"}, "test.loss.1: True, was 2"),
        ({"test": {"loss": [1]}, "name": "a"}, "lacks test.loss.1"),
        ({"test": {"loss": [1, 2], "f1": 0}, "name": "a"}, "adds test.f1"),
        ({"test": {"loss": [1, 10**400]}, "name": "a"}, "differs from byte"),
        ([], "lacks test.loss.0"),
    ],
)
def test_json(new: object, says: str) -> None:
    old = {"test": {"loss": [1, 2.0 if "byte" in says else 2]}, "name": "a"}
    assert says in difference("metrics.json", json.dumps(old).encode(), json.dumps(new).encode())


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (
            layers("network.2.weight", with_one(1 + 2**-20)),
            "network.2.weight: 1 of 6 numbers differ, by up to 9.54e-07",
        ),
        (
            save({name: with_one(3.0) if name[0] == "n" else a for name, a in LAYERS.items()}),
            "network.2.weight: 1 of 6 numbers differ",
        ),
        (layers("network.10.weight", with_one(math.nan)), "network.10.weight: 1 of 6 numbers differ, by up to inf"),
        (layers("codes", np.array([0, 1, 2, 7])), "codes: 1 of 4 numbers differ, by up to 4"),
        (layers("codes", np.arange(5)), "codes: int64 [5], was int64 [4]"),
        (layers("more", np.arange(5)), "adds more"),
        (save({"codes": np.arange(4)}), "lacks network.2.weight"),
        (save(LAYERS, metadata={"a": "b"}), "differs from byte"),
        (b"torn", "differs from byte 0"),
    ],
)
def test_tensors_are_compared_in_the_order_of_layers(new: bytes, says: str) -> None:
    assert difference("model.safetensors", save(LAYERS), new).startswith(says)


def test_equal_contents_have_no_difference() -> None:
    assert difference("h.csv", CSV, CSV) == ""
