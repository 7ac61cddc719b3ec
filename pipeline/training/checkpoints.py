"""Training state on disk: an interrupted stage resumes from it and writes the same bytes as an uninterrupted one."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save
from torch import Tensor

from pipeline.core import files
from pipeline.training.loop import Epoch, Member, OnEpoch, mean_history

FORMAT = 1
SECONDS, SHARE = 2.0, 0.03  # minimum time between checkpoints; maximum share of the time spent on them
LOCK_SECONDS = 5.0  # enough for the workers of a killed search to end and release its lock
STALE_DAYS = 7
KEYS = "[0-9a-f]" * 32  # folders with other names are not removed


class Checkpoints:
    """The checkpoints of one stage and key, a hash of its parameters, data and code.

    Each is one file, replaced atomically at the end of an epoch. If the disk is full, training continues without them.
    """

    def __init__(self, folder: Path, works: bool = True) -> None:
        self.folder, self._works = folder, works
        self._next = time.monotonic() + SECONDS

    def resume(self, name: str, members: Sequence[Member], on_epoch: OnEpoch = lambda row: None) -> OnEpoch:
        """Restore `members` from the checkpoint `name`, if there is one; return an `on_epoch` that saves them.

        The given `on_epoch` is also called for the restored epochs.
        """
        if self._restore(name, members):
            restored = mean_history(members)
            print(f"{name}: resumes after epoch {len(restored)}", flush=True)
            for row in restored:
                on_epoch(row)

        def call_and_save(row: Epoch) -> None:
            on_epoch(row)
            self.save(name, members)

        return call_and_save

    def save(self, name: str, members: Sequence[Member]) -> None:
        """Write a checkpoint, unless the last one is too recent."""
        begun = time.monotonic()
        if not self._works or begun < self._next:
            return
        tensors = {
            f"{k}.{name}": tensor.detach().cpu().contiguous()
            for k, member in enumerate(members)
            for name, tensor in member.tensors().items()
        }
        state = {"format": FORMAT, "of": _identity(members), "members": [member.progress() for member in members]}
        tensors["state"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        content = save(tensors)
        try:
            files.write_bytes(self.folder / f"{name}.safetensors", content + hashlib.sha256(content).digest())
        except OSError as error:
            self._works = False
            print(f"checkpoints disabled: {error.filename}: {error.strerror}", flush=True)
        now = time.monotonic()
        self._next = now + max(SECONDS, (now - begun) / SHARE)

    def _restore(self, name: str, members: Sequence[Member]) -> bool:
        path = self.folder / f"{name}.safetensors"
        if not self._works or not path.exists():
            return False
        found = _read(path)
        if found is None or found[0]["format"] != FORMAT:
            print(f"{path} is damaged: training starts over", flush=True)
            return False
        state, tensors = found
        if state["of"] != _identity(members):
            # The key is computed after params.yaml is read, which may be edited in between.
            print(f"{path} differs in parameters or device: training starts over", flush=True)
            return False
        for k, (member, progress) in enumerate(zip(members, state["members"], strict=True)):
            own = {name.removeprefix(f"{k}."): each for name, each in tensors.items() if name.startswith(f"{k}.")}
            member.restore(own, progress)
        return True


NONE = Checkpoints(Path(), works=False)


@contextmanager
def opened(root: Path, stage: str, key: str) -> Iterator[Checkpoints]:
    """Yield the checkpoints of a stage and key below `root`; removes them on success, and stale ones of other keys."""
    for other in (root / stage).glob(KEYS):
        with suppress(FileNotFoundError):  # another experiment may remove it
            if other.name != key and time.time() - other.stat().st_mtime > STALE_DAYS * 86_400:
                shutil.rmtree(other, ignore_errors=True)
    folder = root / stage / key
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_SECONDS)
    except (Timeout, OSError) as error:
        print(f"checkpoints disabled: {error}", flush=True)
        yield Checkpoints(folder, works=False)
        return
    try:
        yield Checkpoints(folder)
        shutil.rmtree(folder, ignore_errors=True)  # a failed removal must not fail the stage
    finally:
        lock.release()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return the state and the tensors of a checkpoint; None if its checksum is wrong."""
    whole = path.read_bytes()
    content, digest = whole[:-32], whole[-32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    tensors = load(content)
    return json.loads(bytes(tensors.pop("state").tolist())), tensors


def _identity(members: Sequence[Member]) -> list[str]:
    """Return the properties that a checkpoint must share with the members that resume from it."""
    device = next(members[0].network.parameters()).device.type
    return [f"{m.seed} {device} {m.settings.model_dump_json()} {m.network}" for m in members]
