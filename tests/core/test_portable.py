"""With `portable: true`, every processor and environment uses the same code paths and gives the same bytes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core import portable
from pipeline.core.errors import UserError
from pipeline.core.portable import CPUINFO, pin
from tests.support.imports import ROOT

# Pins as `python -m pipeline.stages train` does, before torch and NumPy are imported.
WORK = """
import sys
from pipeline.runtime import launch
launch.portable.pin()
assert not {"torch", "numpy"} & set(sys.modules)
import hashlib, json, os, warnings
warnings.simplefilter("error")
import numpy as np, torch
torch.set_num_threads(1)
draw = np.random.default_rng(0).normal(size=(300, 300))
rows = torch.from_numpy(draw).float()
parts = {
    "torch product": torch.baddbmm(rows[None, :1], rows[None], rows[None]).numpy(),
    "torch sum": torch.softmax(rows, 1).sum(0).numpy(),
    "numpy product": draw @ draw,
    "numpy exp": np.exp(draw),
    "numpy order": np.argsort(draw.ravel().round(1)),
}
sums = {name: hashlib.md5(part.tobytes()).hexdigest() for name, part in parts.items()}
print(json.dumps({"sums": sums, "torch": torch.backends.cpu.get_cpu_capability()}))
"""
# The choices of older processors and of other makers.
OTHERS = [
    {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OPENBLAS_CORETYPE": "Nehalem"},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "NPY_DISABLE_CPU_FEATURES": "X86_V3", "MKL_CBWR": "AVX2"},
]
# Equal on an Intel Xeon (Sapphire Rapids) and an AMD EPYC, with the versions of constraints.txt. NumPy's product, which no
# stage uses, is equal only with the same number of cores.
PINNED = {
    "torch product": "fbcf393ef7617d09996a2479943343e8",
    "torch sum": "2e6642cedc1540577cd24f19aaac5ec2",
    "numpy exp": "9565fb533f048a6ce6bd681788d0c41d",
    "numpy order": "8bcce9ed596d98e09114588817fb2463",
}


def sums(environment: dict[str, str]) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", WORK], env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["sums"] | {"torch's own": found["torch"]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    monkeypatch.chdir(tmp_path)

    def write(portable: bool) -> None:
        text = (ROOT / "params.yaml").read_text()
        Path("params.yaml").write_text(text.replace("portable: false", f"portable: {str(portable).lower()}"))

    write(False)
    return write


needs_avx2 = pytest.mark.skipif(not CPUINFO.exists() or "avx2" not in CPUINFO.read_text(), reason="needs AVX2")


@pytest.mark.slow
@needs_avx2
def test_portable_gives_the_same_bytes_on_other_processors(here: Callable[[bool], None]) -> None:
    usual = sums({})
    differ = {part for other in OTHERS for part, found in sums(other).items() if found != usual[part]}
    # Otherwise the test would prove nothing. The other parts differ by make: MKL obeys these variables only on Intel.
    assert differ >= {"torch's own", "numpy product"}
    here(True)
    pinned = sums({})
    assert pinned.items() >= (PINNED | {"torch's own": "AVX2"}).items()
    assert [sums(other) for other in OTHERS] == [pinned] * len(OTHERS)


def test_without_portable_the_environment_is_unchanged(
    here: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(os.environ)
    pin()
    assert dict(os.environ) == before


def test_a_processor_without_avx2_is_refused(
    here: Callable[[bool], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(True)
    (tmp_path / "cpuinfo").write_text("flags : fpu sse2 avx\n")
    for cpuinfo in (tmp_path / "cpuinfo", tmp_path / "none"):
        monkeypatch.setattr(portable, "CPUINFO", cpuinfo)
        with pytest.raises(UserError, match="portable needs Linux on an x86-64 processor with AVX2"):
            pin()


def test_a_mistake_in_params_is_one_line(here: Callable[[bool], None]) -> None:
    Path("params.yaml").write_text("portable: maybe\n")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages", "train"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: params.yaml")
    assert done.stderr.count("\n") == 1
