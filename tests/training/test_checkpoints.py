import errno
import hashlib
import itertools
import json
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import save

from pipeline.core import files
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoints, opened
from pipeline.training.loop import fit
from tests.support import samples
from tests.support.members import KINDS, largest_difference, members_of

EPOCHS = 6


@pytest.fixture(autouse=True)
def _at_every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)


class KilledError(Exception):
    pass


def members(optimizer="sgd"):
    of = samples.sample("mixed")
    kinds = [(seed, dropout, {**own, "epochs": EPOCHS, "optimizer": optimizer}) for seed, dropout, own in KINDS]
    return members_of(of, kinds, {}, torch.float32)


def train(saved, learning, die_after=None):
    of = samples.sample("mixed")
    seen = []

    def on_epoch(row):
        seen.append(row["epoch"])
        if row["epoch"] == die_after:
            raise KilledError  # after the checkpoint of the epoch before

    fit(learning, of.train, of.val, of.target, on_epoch=saved.resume("network", learning, on_epoch))
    return seen


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("die_after", range(1, EPOCHS + 1))
def test_what_was_interrupted_ends_as_if_it_had_not_been(tmp_path, optimizer, die_after):
    undisturbed, interrupted, resumed = (members(optimizer) for _ in range(3))
    train(Checkpoints(tmp_path / "other"), undisturbed)
    with pytest.raises(KilledError):
        train(Checkpoints(tmp_path / "own"), interrupted, die_after)
    assert train(Checkpoints(tmp_path / "own"), resumed) == list(range(1, EPOCHS + 1))
    assert largest_difference(undisturbed, resumed) == 0
    assert [m.history for m in resumed] == [m.history for m in undisturbed]
    assert [m.best_epoch for m in resumed] == [m.best_epoch for m in undisturbed]


def test_a_checkpoint_of_finished_training_trains_no_more(tmp_path):
    done, again = members(), members()
    train(Checkpoints(tmp_path), done)
    kept = Checkpoints(tmp_path)
    kept.resume("network", again)
    assert all(member.is_finished for member in again)
    train(kept, again)
    assert largest_difference(done, again) == 0


@pytest.mark.parametrize("place", [0, 5, 100, 2000, -40, -1])
def test_a_damaged_checkpoint_is_reported_and_not_used(tmp_path, place, capsys):
    train(Checkpoints(tmp_path), members())
    path = tmp_path / "network.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    fresh = members()
    Checkpoints(tmp_path).resume("network", fresh)
    assert not any(member.history for member in fresh)
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("left", [0, 10, 31, 32, 40, 1000])
def test_a_torn_checkpoint_is_not_used(tmp_path, left):
    train(Checkpoints(tmp_path), members())
    path = tmp_path / "network.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    fresh = members()
    Checkpoints(tmp_path).resume("network", fresh)
    assert not any(member.history for member in fresh)


def test_training_continues_without_checkpoints_on_a_full_disk(tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_bytes", full)
    learning, reference = members(), members()
    train(Checkpoints(tmp_path), learning)
    assert capsys.readouterr().out.count("checkpoints disabled") == 1
    train(checkpoints.NONE, reference)
    assert largest_difference(learning, reference) == 0


def test_checkpoints_are_seconds_apart_and_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 2.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0.03)
    clock, written = itertools.count(0.0, 0.05), []
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slow(path, content):
        written.append(now[0])
        now[0] += 0.2

    monkeypatch.setattr(files, "write_bytes", slow)
    saved, learning = Checkpoints(tmp_path), members()
    for tick in clock:
        if tick > 100:
            break
        now[0] += 0.05
        saved.save("network", learning)
    assert len(written) > 5
    assert min(later - sooner for sooner, later in itertools.pairwise([0.0, *written])) >= 2.0
    assert 0.2 * len(written) <= 0.031 * now[0]


def test_a_stage_that_ends_removes_its_checkpoints_and_one_that_fails_keeps_them(tmp_path):
    with pytest.raises(KilledError), opened(tmp_path, "train", "key") as saved:
        train(saved, members(), die_after=3)
    assert (tmp_path / "train/key/network.safetensors").exists()
    with opened(tmp_path, "train", "key") as saved:
        train(saved, members())
    assert not (tmp_path / "train/key").exists()


def test_another_key_sees_nothing_of_it_and_removes_only_what_is_old(tmp_path, monkeypatch):
    then = time.time() - 8 * 86_400
    old, new, foreign = 32 * "0", 32 * "1", "mine"
    for key in (old, new, foreign):
        shutil.copytree(_kept(tmp_path / "made"), tmp_path / "train" / key)
        if key != new:
            os.utime(tmp_path / "train" / key, (then, then))
    with opened(tmp_path, "train", "other") as saved:
        fresh = members()
        saved.resume("network", fresh)
        assert not any(member.history for member in fresh)
    assert {path.name for path in (tmp_path / "train").iterdir()} == {new, foreign}


def _kept(folder):
    if not folder.exists():
        train(Checkpoints(folder), members())
    return folder


def test_two_processes_with_one_key_do_not_share_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "LOCK_SECONDS", 0.05)
    with opened(tmp_path, "train", "key"):
        with opened(tmp_path, "train", "key") as second:
            second.save("network", members())
            assert "checkpoints disabled" in capsys.readouterr().out
        assert not list((tmp_path / "train/key").glob("*.safetensors"))


def test_members_that_have_trained_before_are_not_reported_as_resumed(tmp_path, capsys):
    begun = members()
    train(checkpoints.NONE, begun)
    Checkpoints(tmp_path).resume("network", begun, lambda row: pytest.fail("not restored"))
    assert "resumes after" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("was", "now"), [(" cpu ", " cuda "), ('"lr":', '"lr":1'), ("in_features=", "in_features=1"), ("ReLU", "Tanh")]
)
def test_a_checkpoint_of_another_device_or_other_parameters_is_left_alone(tmp_path, was, now):
    train(Checkpoints(tmp_path), members())
    path = tmp_path / "network.safetensors"
    state, tensors = checkpoints._read(path)
    assert all(was in line for line in state["of"])
    state["of"] = [line.replace(was, now) for line in state["of"]]
    content = save({**tensors, "state": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)})
    path.write_bytes(content + hashlib.sha256(content).digest())
    fresh = members()
    Checkpoints(tmp_path).resume("network", fresh)
    assert not any(member.history for member in fresh)
