"""`python -m pipeline verify` on projects that repeat and on projects that do not."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import load, save

from pipeline.commands import objects, verify
from pipeline.core import config
from pipeline.core.errors import UserError
from pipeline.tracking import identity
from tests.support.clones import call, clone, keep_stages
from tests.support.projects import in_cache, tiny

YML = YAML(typ="safe", pure=True)
SUM = f"{0:032x}.dir"
LOCK: dict[str, Any] = {
    "stages": {
        "evaluate@train": {"cmd": "…", "deps": [{"path": "models/train", "md5": SUM}], "outs": [{"path": "reports/train", "md5": SUM}]},
        "train": {"cmd": "…", "deps": [{"path": "data/raw", "md5": SUM}, {"path": "pipeline/networks/build.py", "md5": SUM}], "outs": [{"path": "models/train", "md5": SUM}]},
        "fetch": {"cmd": "…", "outs": [{"path": "data/raw", "md5": SUM}]},
    }
}  # fmt: skip


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> verify.Lock:
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(json.dumps(LOCK))
    return verify.split(verify.load_lock(), LOCK["stages"])[0]


def test_stages_are_ordered_by_dependency_and_selected_by_name(lock: verify.Lock) -> None:
    assert list(lock) == ["fetch", "train", "evaluate@train"]
    assert verify.select(lock, None) == list(lock)
    assert verify.select(lock, "evaluate") == verify.select(lock, "evaluate@train") == ["evaluate@train"]
    with pytest.raises(UserError, match="--stage must be one of fetch, train, evaluate@train, got trian"):
        verify.select(lock, "trian")


@pytest.mark.parametrize(
    "text",
    [
        "stages:\n  train:\n    cmd: a\n",
        "stages: [",
        "",
        "stages: {train: {outs: 3}}",
        "stages:\n  train:\n    cmd: a\n    outs:\n    - path: models/train\n",
        "stages: {train: {cmd: a, outs: [{path: models/train, md5: ab/../../../../../../victim}]}}",
        f"stages: {{train: {{cmd: a, outs: [{{path: ../victim, md5: {SUM}}}]}}}}",
        f"stages: {{train: {{cmd: a, outs: [{{path: models/train, md5: {1:032x}}}], deps: [{{path: a, md5: AB}}]}}}}",
    ],
)
def test_a_damaged_lock_is_reported_with_its_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(UserError, match="is damaged: run git checkout"):
        verify.load_lock(tmp_path / "dvc.lock")
    with pytest.raises(UserError, match="is missing: run dvc repro"):
        verify.load_lock(tmp_path / "none")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"train": ["data/raw"]}, {}),  # in the clone it is not made yet; the lock decides
        (
            {"train": ["train.lr", "pipeline/networks/build.py"]},
            {
                "train": "stale: pipeline/networks/build.py, train.lr changed; run dvc repro",
                "evaluate@train": "stale: depends on train, which is stale",
            },
        ),
        ({"report": ["its command"]}, {"report": "stale: never ran; run dvc repro"}),
    ],
)
def test_changed_stages_and_those_that_depend_on_them_are_stale(
    lock: verify.Lock, changed: dict[str, list[str]], expected: dict[str, str]
) -> None:
    assert verify.stale(lock, changed) == expected


def test_a_stage_built_from_an_older_input_is_stale(lock: verify.Lock) -> None:
    newer: Any = json.loads(json.dumps(lock))
    newer["train"]["outs"][0]["md5"] = f"{1:032x}.dir"
    assert verify.stale(newer, {}) == {"evaluate@train": "stale: models/train changed; run dvc repro"}


def test_stages_that_depend_on_each_other_are_a_damaged_lock(lock: verify.Lock) -> None:
    round_about: Any = json.loads(json.dumps(lock))
    round_about["fetch"]["deps"] = [{"path": "reports/train", "md5": SUM}]
    with pytest.raises(UserError, match="is damaged: run git checkout"):
        verify.split(round_about, round_about)


def test_a_listing_with_invalid_checksums_or_names_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "cache_folder", lambda project: tmp_path / "files/md5")
    for rows, expected in [
        ([{"md5": "0" * 32, "relpath": "a/b"}], {"a/b": "0" * 32}),
        ([{"md5": "ab/../../../victim", "relpath": "a"}], None),
        ([{"md5": "0" * 32, "relpath": "a/../../b"}], None),
        ([{"md5": "0" * 32, "relpath": "/a"}], None),
        ([{"md5": 3, "relpath": "a"}], None),
        ([{"md5": "0" * 32}], None),
        (3, None),
    ]:
        md5 = in_cache(tmp_path, json.dumps(rows).encode())
        assert objects.locked_checksums(Path("out"), md5) == expected, rows
    (tmp_path / "victim").write_bytes(b"")
    assert objects.locked_checksums(Path("out"), "ab/../../../victim") is None
    assert objects.locked_files(Path("out"), "ab/../../../victim.dir") is None


@pytest.fixture
def rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str]]]:
    """`rebuilt(old=…, new=…, cached=…, kept=…)`: an output as it was in workspace or cache, beside as it is now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(objects, "cache_folder", lambda project: tmp_path / "cache/files/md5")

    def write(folder: Path, contents: dict[str, bytes]) -> None:
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def found(
        old: dict[str, bytes], new: dict[str, bytes], cached: bool = True, harm: Callable[[Path], object] = lambda f: f
    ) -> list[tuple[str, str]]:
        write(Path("models/train"), old)
        write(Path("clone/models/train"), new)
        sums = objects.checksums(Path("models/train"))
        total = identity.checksum(Path("models/train"))
        if cached:
            rows = json.dumps([{"md5": sums[name], "relpath": name} for name in sorted(sums)], sort_keys=True)
            for name, content in {total: rows.encode()}.items() | {(sums[n], c) for n, c in old.items()}:
                write(Path("cache/files/md5"), {f"{name[:2]}/{name[2:]}": content})
        harm(tmp_path)
        return verify.compare({"path": "models/train", "md5": total}, Path("clone"))[1]

    return found


A, B = {"m/a.csv": b"x\n1\n", "b.bin": b"\x01\x02"}, {"m/a.csv": b"x\n1.5\n", "b.bin": b"\x01\x02"}
NUMBER = ("models/train/m/a.csv", "differs by up to 0.5, at x, row 1: 1.5, was 1.0")


def test_files_that_differ_are_named_from_workspace_or_cache(rebuilt: Callable[..., list[tuple[str, str]]]) -> None:
    assert rebuilt(A, A) == []
    assert rebuilt(A, B) == [NUMBER]
    assert rebuilt(A, B, cached=False) == [NUMBER]
    assert rebuilt(A, B, harm=lambda folder: shutil.rmtree(folder / "models")) == [NUMBER]


def test_new_and_missing_files_are_named(rebuilt: Callable[..., list[tuple[str, str]]]) -> None:
    new = {"m/c.csv": b"", "b.bin": b"\x01\x02"}
    assert rebuilt(A, new) == [("models/train/m/a.csv", "is missing"), ("models/train/m/c.csv", "is new")]


def test_without_the_original_only_checksums_are_compared(rebuilt: Callable[..., list[tuple[str, str]]]) -> None:
    def flip(folder: Path) -> None:
        shutil.rmtree(folder / "models")
        for file in (folder / "cache").rglob("*"):
            if file.is_file() and not file.name.endswith(".dir"):
                file.write_bytes(file.read_bytes() + b"!")

    ((file, how),) = rebuilt(A, B, harm=flip)
    assert file == "models/train/m/a.csv"
    assert how.startswith("checksum ")
    assert how.endswith("no original to compare with")


def test_without_the_listing_the_folder_is_named(rebuilt: Callable[..., list[tuple[str, str]]]) -> None:
    ((file, how),) = rebuilt(A, B, cached=False, harm=lambda folder: shutil.rmtree(folder / "models"))
    assert file == "models/train"
    assert how.endswith(".dir; no original to compare with")


def test_a_missing_output_is_named(rebuilt: Callable[..., list[tuple[str, str]]]) -> None:
    assert rebuilt(A, {}) == [("models/train", "is missing")]


# ------------------------------------------------------------------------------------------------- a real project


@pytest.mark.slow
def test_only_commands_in_dvc_yaml_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny(tmp_path / "project"))
    victim, whole = tmp_path / "victim", YML.load(Path("dvc.lock").read_text())

    # The stage had another name, and another result.
    renamed = {"cmd": f"touch {victim}", "outs": [{"path": "models/train", "md5": SUM}]}
    Path("dvc.lock").write_text(json.dumps(whole | {"stages": whole["stages"] | {"fit": renamed, "old": renamed}}))
    assert verify.verify() == [verify.Verdict("train", 1, [])]
    assert capsys.readouterr().out.startswith("skipped, no longer in dvc.yaml: fit, old\n")
    with pytest.raises(UserError, match="--stage must be one of train, got fit"):
        verify.verify("fit")

    # An output that is called as a change is does not hide it.
    outs = [*whole["stages"]["train"]["outs"], {"path": "its command", "md5": SUM}]
    changed = {"cmd": f"touch {victim}", "outs": outs}
    for frozen in (False, True):
        stages = YML.load(Path("dvc.yaml").read_text())
        stages["stages"]["train"]["frozen"] = frozen
        Path("dvc.yaml").write_text(config.dump_yaml(stages, YML))
        Path("dvc.lock").write_text(json.dumps(whole | {"stages": {"train": changed}}))
        (verdict,) = verify.verify()
        assert verdict.text == "stale: its command changed; run dvc repro"
    assert not victim.exists()


@pytest.mark.slow
def test_a_project_below_the_root_of_its_git_repository_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mono/team/project"
    ignored = shutil.ignore_patterns(".git", ".dvc", "models")
    shutil.copytree(tiny(tmp_path / "alone"), folder, ignore=ignored)
    (tmp_path / "mono/other.txt").write_text("of another team")
    call(tmp_path / "mono", "git", "init", "--quiet")
    call(folder, "dvc", "init", "--subdir", "--quiet")
    call(folder, "dvc", "config", "core.analytics", "false")
    call(folder, "dvc", "repro")
    monkeypatch.chdir(folder)
    assert verify.verify() == verify.verify("train") == [verify.Verdict("train", 1, [])]
    (folder / "dvc.yaml").write_text((folder / "dvc.yaml").read_text().replace("{}", "[]"))
    assert verify.verify()[0].text == "stale: its command changed; run dvc repro"


def test_a_folder_outside_of_git_is_refused_in_one_line(lock: verify.Lock, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path} is not in a git repository, .* run git init$"):
        verify.verify()


def small(folder: Path) -> Path:
    """A clone with the stages fetch, prepare and train, reproduced."""
    clone(folder, {"data.source": "t.csv", "data.target": "label", "data.task": "binary", "train.overfit": None})
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f},{rng.choice(['red', 'green'])},{'high' if x > 0 else 'low'}" for x in rng.normal(size=200)]
    (folder / "data/source/t.csv").write_text("\n".join(["x,colour,label", *rows]) + "\n")
    keep_stages(folder, "fetch", "prepare", "train")
    call(folder, "dvc", "repro")
    return folder


@pytest.mark.slow
def test_a_small_project_is_identical_and_changed_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, temporary = small(tmp_path / "project"), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    runs = (folder / "mlflow.db").stat().st_mtime_ns
    said = call(folder, "python", "-m", "pipeline", "verify")
    assert "3 of 3 stages identical" in said
    assert "verify 3/3  train: identical, 5 files" in said
    assert (folder / "mlflow.db").stat().st_mtime_ns == runs
    assert not list(temporary.glob("verify-*"))

    weights = folder / "models/train/model.safetensors"
    tensors = load(weights.read_bytes())
    name = next(name for name in sorted(tensors) if name.endswith("weight"))
    tensors[name].flat[0] += 1e-6
    weights.write_bytes(save(tensors))
    history = folder / "models/train/history.csv"
    content = bytearray(history.read_bytes())
    content[0] ^= 1
    history.write_bytes(content)
    call(folder, "dvc", "commit", "--force", "train")
    shutil.rmtree(folder / "models/train")  # the originals are in the cache
    said = call(folder, "python", "-m", "pipeline", "verify", "--stage", "train", status=1)
    assert "0 of 1 stages identical" in said
    assert "models/train/history.csv: columns epoch" in said
    (size,) = re.findall(
        rf"model.safetensors: {name}: 1 of {tensors[name].size:,} numbers differ, by up to (\S+),", said
    )
    assert float(size) == pytest.approx(1e-6, rel=0.2)  # as far as a float32 can be that far

    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("clip: null", "clip: 1.0"))
    assert verify.changes(folder) == {"train": ["train in params.yaml"]}
    interrupted(folder, temporary)


def interrupted(folder: Path, temporary: Path) -> None:
    """Ctrl-C in the middle of a stage leaves neither the clone nor a process."""
    with subprocess.Popen(
        # A shell may have had it ignored.
        ["env", "--default-signal=INT", sys.executable, "-m", "pipeline", "verify", "--stage", "fetch"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not list(temporary.glob("verify-*/output")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "error: interrupted\n"
    assert not list(temporary.glob("verify-*"))
    until = time.monotonic() + 30  # what is killed is gone a moment later
    while [link for link in Path("/proc").glob("[0-9]*/cwd") if str(temporary) in _target(link)]:
        assert time.monotonic() < until
        time.sleep(0.05)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # it has ended, or is another user's
        return ""
