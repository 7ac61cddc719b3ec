"""The journal loses no event, logs none twice, and belongs to one process at a time."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import Timeout

from pipeline.tracking import journal as journals
from pipeline.tracking.journal import CUT, EVENTS, Journal
from tests.support.imports import ROOT

HOLD = """
import sys, time
from pathlib import Path
from pipeline.tracking import journal as journals
journal = journals.begin(Path(sys.argv[1]), "train", "key")
journal.append("run", name="train", experiment="e", tags={})
journal.append("metrics", metrics=[("val/loss", 0.5, 1)])
print("held", flush=True)
time.sleep(60)
"""


def begun(root: Path, stage: str = "train", key: str = "key") -> Journal:
    journal = journals.begin(root, stage, key)
    journal.append("run", name=stage, experiment="e", tags={})
    return journal


def ended(root: Path, status: str = "FINISHED", key: str = "key") -> Journal:
    journal = begun(root, key=key)
    journal.append("end", status=status)
    journal.lock.release()
    return journal


def kinds(journal: Journal) -> list[str]:
    return [event["kind"] for event, _ in journal.events()]


def hold(root: Path) -> "subprocess.Popen[str]":
    """Start a process that holds a journal until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_events_are_read_in_order_from_a_byte(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    journal.append("params", params={"ä": "b\nc"})
    journal.append("metrics", metrics=[("loss", float("nan"), 1)])
    first, second, third = journal.events()
    assert second[0]["params"] == {"ä": "b\nc"}
    journal.sent = second[1]
    assert [end for _, end in journal.events(journal.sent)] == [third[1]]
    assert journal.n_waiting == 1
    assert first[0]["time"] == pytest.approx(time.time() * 1000, abs=60_000)


@pytest.mark.parametrize("torn", [b'{"kind": "me', b"\0" * 50, b'[1]\n{"kind": "late"}\n', b"\xff\xfe\n"])
def test_a_damaged_end_is_moved_to_a_file_and_reported_and_the_rest_stays(
    tmp_path: Path, torn: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = begun(tmp_path)
    journal.append("metrics", metrics=[("loss", 1.0, 1)])
    with (journal.folder / EVENTS).open("ab") as file:
        file.write(torn)
    journal.sent = (journal.folder / EVENTS).stat().st_size
    journal.lock.release()
    again = journals.begin(tmp_path, "train", "key")
    assert again.folder == journal.folder
    assert f"{EVENTS}: moved {len(torn)} damaged bytes from its end to {CUT}" in capsys.readouterr().out
    assert (again.folder / CUT).read_bytes() == torn
    again.append("run", name="train", experiment="e", tags={})
    assert kinds(again) == ["run", "metrics", "run"]
    assert again.n_waiting == 1  # though more than there is now was sent


def test_a_process_killed_before_its_first_event_leaves_nothing(tmp_path: Path) -> None:
    for content in (b"", b'{"kind": "ru', b"\0" * 100):
        journal = journals.begin(tmp_path, "train", "key")
        (journal.folder / EVENTS).write_bytes(content)
        journal.lock.release()
        journals.close_interrupted(tmp_path)
        assert not journal.folder.exists()
        assert journals.waiting(tmp_path) == []


def test_a_journal_with_a_damaged_first_event_is_quarantined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    journal = begun(root)
    whole = (journal.folder / EVENTS).read_bytes()
    (journal.folder / EVENTS).write_bytes(b"?" + whole + whole)
    journal.lock.release()
    assert journals.waiting(root) == []
    assert not journal.folder.exists()
    assert journals.n_refused(root) == 1
    assert (tmp_path / "refused" / journal.folder.name / CUT).read_bytes() == b"?" + whole + whole
    assert "its first event is damaged" in capsys.readouterr().out


def test_a_partial_event_on_a_full_disk_is_removed(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((journal.folder / EVENTS).stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append("tags", tags={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    journal.append("end", status="FAILED")
    assert kinds(journal) == ["run", "end"]


@pytest.mark.parametrize("content", ["", "x", "999999"])
def test_a_damaged_sent_mark_sends_again_and_loses_nothing(tmp_path: Path, content: str) -> None:
    journal = begun(tmp_path)
    (journal.folder / "sent").write_text(content)
    size = (journal.folder / EVENTS).stat().st_size
    assert journal.sent == (size if content == "999999" else 0)


@pytest.mark.parametrize("status", [None, "KILLED", "FAILED"])
def test_an_unfinished_execution_is_resumed_and_logs_nothing_twice(tmp_path: Path, status: str | None) -> None:
    journal = begun(tmp_path)
    journal.append("metrics", metrics=[("val/loss", 0.5, 1), ("lr", 0.1, 1)])
    journal.append("trial", number=0, params={}, state="complete", metrics=[])
    if status is not None:
        journal.append("end", status=status)
    journal.lock.release()

    again = begun(tmp_path)
    assert again.execution == journal.execution
    assert again.status is None
    before = len(again.events())
    again.append("metrics", metrics=[("val/loss", 0.5, 1)])
    again.append("trial", number=0, params={}, state="complete", metrics=[])
    assert len(again.events()) == before
    again.append("metrics", metrics=[("val/loss", 0.5, 1), ("val/loss", 0.4, 2)])
    again.append("trial", number=1, params={}, state="complete", metrics=[])
    assert [event.get("metrics") for event, _ in again.events()[before:]] == [[["val/loss", 0.4, 2]], []]


def test_a_finished_execution_or_one_with_another_key_is_not_resumed(tmp_path: Path) -> None:
    finished, other = ended(tmp_path), ended(tmp_path, "KILLED", key="other")
    assert begun(tmp_path).execution not in (finished.execution, other.execution)


def test_journals_of_dead_processes_are_closed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    alive, dead = hold(tmp_path), hold(tmp_path)
    assert len(list(tmp_path.glob(f"*/{EVENTS}"))) == 2  # the second is no resumption of the first, which lives
    kill(dead)
    begun(tmp_path, "prepare").lock.release()
    states = [journal.status for journal in map(Journal, sorted(tmp_path.glob("train-*")))]
    assert sorted(map(str, states)) == ["KILLED", "None"]
    assert [journal.status for journal in journals.waiting(tmp_path)] == ["KILLED"]
    kill(alive)
    journals.close_interrupted(tmp_path)
    assert {journal.status for journal in map(Journal, tmp_path.glob("train-*"))} == {"KILLED"}


def test_waiting_journals_are_locked_and_ordered_by_age(tmp_path: Path) -> None:
    journal_b = ended(tmp_path, key="b")
    time.sleep(0.01)
    journal_a = ended(tmp_path, key="a")
    first = journals.waiting(tmp_path)
    assert [journal.folder for journal in first] == [journal_b.folder, journal_a.folder]
    assert journals.waiting(tmp_path) == []
    with pytest.raises(Timeout):
        Journal(journal_a.folder).lock.acquire()
    for journal in first:
        journal.lock.release()
    assert len(journals.waiting(tmp_path)) == 2


def test_sent_and_finished_journals_are_removed_and_others_only_when_stale(tmp_path: Path) -> None:
    finished, killed, unsent = ended(tmp_path, key="1"), ended(tmp_path, "KILLED", key="2"), ended(tmp_path, key="3")
    for journal in (finished, killed):
        journal.sent = (journal.folder / EVENTS).stat().st_size
    begun(tmp_path, "prepare").lock.release()
    assert [journal.folder.exists() for journal in (finished, killed, unsent)] == [False, True, True]
    os.utime(killed.folder / EVENTS, (0, 0))
    begun(tmp_path, "prepare").lock.release()
    assert [journal.folder.exists() for journal in (killed, unsent)] == [False, True]


def test_incomplete_and_half_removed_journals_are_removed_and_other_folders_stay(tmp_path: Path) -> None:
    root, ours, others = tmp_path / "runs", ("train-key-0123456789ab", ".0123456789ab"), ("backup", ".half", "a-b-c")
    for name in (*ours, *others):
        (root / name / "files").mkdir(parents=True)
        (root / name / "files/model").touch()
    for name in (".0123456789ab", ".half", "a-b-c"):
        (root / name / EVENTS).write_text(json.dumps({"kind": "run", "time": 1}) + "\n")
    (root / "link-key-0123456789ab").symlink_to(root / "backup")
    begun(root)
    assert not any((root / name).exists() for name in ours)
    assert all((root / name / "files/model").exists() for name in (*others, "link-key-0123456789ab"))
    assert journals.n_waiting(root) == 1


def test_kept_files_do_not_change_when_a_stage_replaces_or_an_editor_edits_them(tmp_path: Path) -> None:
    weights, code = tmp_path / "model.bin", tmp_path / "code.py"
    weights.write_text("old")
    code.write_text("old")
    journal = begun(tmp_path / "runs")
    place = journal.folder / (journal.keep({"model.bin": weights, "part/code.py": code}, "bundle"))
    assert place.name == "bundle"
    weights.unlink()
    weights.write_text("new")
    code.write_text("new")
    assert (place / "model.bin").read_text() == (place / "part/code.py").read_text() == "old"


def test_a_restored_run_is_complete_and_unique_or_absent(tmp_path: Path) -> None:
    def build(*, broken: bool = False) -> None:
        with journals.restored(tmp_path, "train", "key") as journal:
            journal.append("run", name="train", experiment="e", tags={})
            if broken:
                raise KeyError
            journal.append("end", status="FINISHED")

    with pytest.raises(KeyError):
        build(broken=True)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    build()
    build()
    (found,) = journals.waiting(tmp_path)
    assert found.execution == "restoredkey"
    assert kinds(found) == ["run", "end"]
    assert {event["time"] for event, _ in found.events()} == {0}  # as others have it who rebuild it


def test_a_run_is_on_its_way_while_it_is_logged_and_when_it_waits_finished(tmp_path: Path) -> None:
    ended(tmp_path, "FAILED")
    assert not journals.on_its_way(tmp_path, "train", "key")
    journal = begun(tmp_path)
    assert journals.on_its_way(tmp_path, "train", "key")
    journal.append("end", status="FINISHED")
    journal.lock.release()
    assert journals.on_its_way(tmp_path, "train", "key")
    assert not journals.on_its_way(tmp_path, "train", "other")
