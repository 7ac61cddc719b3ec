"""Splits read back from disk unchanged."""

import numpy as np
import pytest
import torch

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.tables import prepared
from pipeline.tables.schema import Column, Schema, Target
from pipeline.tables.tensors import TabularData
from tests.support.schemas import NUMBER


def with_schema(folder, d_num, d_cat, task):
    numbers = [Column(name=f"n{k}", kind="numeric", reason="", reading=NUMBER) for k in range(d_num)]
    texts = [Column(name=f"c{k}", kind="categorical", reason="", categories=tuple("abcdefgh")) for k in range(d_cat)]
    target = Target(name="y", task=task, classes=("u", "v", "w") if task == "multiclass" else ())
    files.write_json(folder / "schema.json", Schema(columns=(*numbers, *texts), target=target).model_dump(mode="json"))


@pytest.mark.parametrize("y", [torch.tensor([0, 2, 1, 2, 0]), torch.tensor([0.5, -1, 2, 3, 4], dtype=torch.float32)])
@pytest.mark.parametrize("codes", [torch.uint8, torch.int16])
def test_split_comes_back_from_disk_as_it_was(tmp_path, y, codes):
    with_schema(tmp_path, 3, 2, "regression" if y.is_floating_point() else "multiclass")
    stored = TabularData(torch.randn(5, 3).T.contiguous().T, torch.arange(10, dtype=codes).reshape(5, 2), y)
    prepared.save_split(tmp_path / "source", "val", stored, np.array([3, 5, 8, 9, 11]))
    loaded = prepared.load_split("source", "val", tmp_path)
    for name in ("x_num", "x_cat", "y"):
        ours, theirs = getattr(stored, name), getattr(loaded, name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert prepared.load_rows("source", "val", tmp_path).tolist() == [3, 5, 8, 9, 11]


def test_same_split_is_stored_in_the_same_bytes(tmp_path):
    stored = TabularData(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.uint8), torch.tensor([0, 1]))
    with_schema(tmp_path, 0, 0, "multiclass")
    for folder in ("a", "b"):
        prepared.save_split(tmp_path / folder, "train", stored, np.array([0, 1]))
    first, second = ((tmp_path / folder / "train.safetensors").read_bytes() for folder in ("a", "b"))
    assert first == second
    assert prepared.load_split("a", "train", tmp_path).x_num.shape == (2, 0)


def test_a_missing_split_names_the_command_to_run(tmp_path):
    for load in (prepared.load_split, prepared.load_rows):
        with pytest.raises(UserError, match="dvc repro"):
            load("source", "train", tmp_path)


def test_domains_are_the_existing_folders(tmp_path):
    assert prepared.domains(tmp_path) == []
    (tmp_path / "transfer").mkdir()
    (tmp_path / "source").mkdir()
    assert prepared.domains(tmp_path) == ["source", "transfer"]
