"""Where training stands, on disk: what was interrupted goes on from there, to the bytes it would have had."""

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
SECONDS, SHARE = 2.0, 0.03  # between two checkpoints, at least; of the time that may go into them
LOCK_SECONDS = 5.0  # in which the workers of a killed search have ended, and let go of its lock
STALE_DAYS = 7
KEYS = "[0-9a-f]" * 32  # folders with other names are somebody else's


class Checkpoints:
    """The checkpoints of one stage and key. What has another key has other parameters, data or code, and is not looked at.

    Each is one file, replaced whole at the end of an epoch. Where the disk refuses, training goes on without them.
    """

    def __init__(self, folder: Path, works: bool = True) -> None:
        self.folder, self._works = folder, works
        self._next = time.monotonic() + SECONDS

    def keeping(self, name: str, members: Sequence[Member], on_epoch: OnEpoch = lambda row: None) -> OnEpoch:
        """Bring `members` to where the checkpoint `name` has them, if there is one, and return an `on_epoch` that goes on
        to keep them.

        `on_epoch` is called for the epochs that are there already, too.
        """
        if self._restore(name, members):
            done = mean_history(members)
            print(f"{name}: interrupted after epoch {len(done)}, goes on from there", flush=True)
            for row in done:
                on_epoch(row)

        def kept(row: Epoch) -> None:
            on_epoch(row)
            self.save(name, members)

        return kept

    def save(self, name: str, members: Sequence[Member]) -> None:
        """Write a checkpoint, unless the last one was just now."""
        begun = time.monotonic()
        if not self._works or begun < self._next:
            return
        tensors = {
            f"{k}.{name}": tensor.detach().cpu().contiguous()
            for k, member in enumerate(members)
            for name, tensor in member.tensors().items()
        }
        state = {"format": FORMAT, "of": _of(members), "members": [member.progress() for member in members]}
        tensors["state"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        content = save(tensors)
        try:
            files.write_bytes(self.folder / f"{name}.safetensors", content + hashlib.sha256(content).digest())
        except OSError as error:
            self._works = False
            print(f"no checkpoints from here on: {error.filename}: {error.strerror}", flush=True)
        now = time.monotonic()
        self._next = now + max(SECONDS, (now - begun) / SHARE)

    def _restore(self, name: str, members: Sequence[Member]) -> bool:
        path = self.folder / f"{name}.safetensors"
        if not self._works or not path.exists():
            return False
        found = _read(path)
        if found is None or found[0]["format"] != FORMAT:
            print(f"{path} is damaged, and not used", flush=True)
            return False
        state, tensors = found
        if state["of"] != _of(members):
            # The key is found a moment after the parameters are read, and somebody may have edited them in between.
            print(f"{path} is of other parameters or another device, and not used", flush=True)
            return False
        for k, (member, progress) in enumerate(zip(members, state["members"], strict=True)):
            own = {name.removeprefix(f"{k}."): each for name, each in tensors.items() if name.startswith(f"{k}.")}
            member.restore(own, progress)
        return True


NONE = Checkpoints(Path(), works=False)


@contextmanager
def opened(root: Path, stage: str, key: str) -> Iterator[Checkpoints]:
    """The checkpoints of a stage with this key, below `root`; they are removed when the stage is done.

    Old ones of other keys are removed too.
    """
    for other in (root / stage).glob(KEYS):
        with suppress(FileNotFoundError):  # another experiment has just ended
            if other.name != key and time.time() - other.stat().st_mtime > STALE_DAYS * 86_400:
                shutil.rmtree(other, ignore_errors=True)
    folder = root / stage / key
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_SECONDS)
    except (Timeout, OSError) as error:
        print(f"no checkpoints: {error}", flush=True)
        yield Checkpoints(folder, works=False)
        return
    try:
        yield Checkpoints(folder)
        shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed does not undo the work
    finally:
        lock.release()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The plain state and the tensors of a checkpoint; None if it is not what was written."""
    whole = path.read_bytes()
    content, digest = whole[:-32], whole[-32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    tensors = load(content)
    return json.loads(bytes(tensors.pop("state").tolist())), tensors


def _of(members: Sequence[Member]) -> list[str]:
    """What makes two trainings on the same data the same one."""
    device = next(members[0].network.parameters()).device.type
    return [f"{m.seed} {device} {m.settings.model_dump_json()} {m.network}" for m in members]
