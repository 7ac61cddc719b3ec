"""The same bytes in another folder, for another user, in another place of the world, on other and busier cores."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.imports import ROOT
from tests.support.params import write_params
from tests.support.samples import hostile_table
from tests.support.tally import Tally

# Run the stages in one process; its arguments are a umask, and `one` or `all` cores.
CHAIN = """
import os, sys
os.umask(int(sys.argv[1], 8))
if sys.argv[2] == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pipeline.runtime import launch
for stage in ("fetch", "prepare", "train", "finetune", "search", "evaluate@train", "evaluate@search"):
    launch.main([stage])
"""
PARAMS = {
    "data.source": "t.csv",
    "data.target": "label",
    "data.task": "multiclass",
    "data.transfer": {"column": "wörd/with slash", "values": ["red"]},
    "search.n_trials": 4,
}
# By name: environment variables, and the umask and cores of CHAIN.
OTHERS: dict[str, tuple[dict[str, str], str, str]] = {
    "another folder": ({}, "022", "all"),
    "another PYTHONHASHSEED": ({"PYTHONHASHSEED": "4242"}, "022", "all"),
    "another time zone": ({"TZ": "Pacific/Kiritimati"}, "022", "all"),
    "another locale": ({"LC_ALL": "C", "LANG": "C"}, "022", "all"),
    "another umask": ({}, "077", "all"),
    "another user": ({"USER": "sömeone", "LOGNAME": "sömeone", "HOME": "home"}, "022", "all"),
    "one core": ({}, "022", "one"),
    "a busy machine": ({}, "022", "all"),
}
BUSY = "a busy machine"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    hostile_table(300, np.random.default_rng(0)).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def run(folder: Path, table: Path, database: Path, environment: dict[str, str], umask: str, cores: str) -> Path:
    """The outputs of all stages that compute, made in `folder`."""
    (folder / "data/source").mkdir(parents=True)
    for name in ("dvc.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "pipeline").symlink_to(ROOT / "pipeline")
    shutil.copy(database, folder / "mlflow.db")
    shutil.copy(table, folder / "data/source")
    write_params(folder, PARAMS)
    if "HOME" in environment:
        environment = environment | {"HOME": str(folder / "home")}
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", CHAIN, umask, cores], cwd=folder, env=usual | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, check=False, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def sums(folder: Path) -> dict[str, str]:
    found = [path for name in ("data/raw", "data/prepared", "models", "reports") for path in (folder / name).rglob("*")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found if path.is_file()
    }


def test_the_same_bytes_wherever_a_stage_runs(tmp_path: Path, table: Path, database: Path, tally: Tally) -> None:
    expected = sums(run(tmp_path / "here", table, database, {}, "022", "all"))
    assert len(expected) > 30

    def trial(names: list[str], folder: Path) -> None:
        environment: dict[str, str] = {}
        for name in names:
            environment |= OTHERS[name][0]
        umask, cores = max(OTHERS[name][1] for name in names), max(OTHERS[name][2] for name in names)
        burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2) if BUSY in names]
        try:
            made = run(folder, table, database, environment, umask, cores)
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        assert sums(made) == expected
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (made / "models").rglob("*") if path.is_file()}
        assert modes == {0o666 & ~int(umask, 8)}

    with tally.trial("another folder, hash seed, time zone, locale, umask and user, one busy core, at once"):
        trial(list(OTHERS), tmp_path / "elsewhere" / "deep ümlaut")
    for name in list(OTHERS)[: tally.times(0, len(OTHERS))]:  # in make torture, each alone too
        with tally.trial(name):
            trial([name], tmp_path / name)
