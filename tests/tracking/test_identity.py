"""Where a run comes from."""

import subprocess
from pathlib import Path

import pytest

from pipeline.tracking import identity


def git(*arguments: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize(("edited", "dirty"), [("dvc.lock", "false"), ("params.yaml", "true"), ("../README", "false")])
def test_only_edits_of_the_user_in_this_project_make_a_run_dirty(
    edited: str, dirty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    git("init", "--quiet", "..")
    for name in ("dvc.lock", "params.yaml", "../README"):
        Path(name).write_text("a")
    git("add", "..")
    git("commit", "--quiet", "--message", "a")
    assert identity.origin()["git.dirty"] == "false"
    Path(edited).write_text("b")
    assert identity.origin()["git.dirty"] == dirty
