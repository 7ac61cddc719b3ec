"""`portable`: code paths that libraries choose by the processor, pinned to those that processors of every make have."""

import os
from pathlib import Path

from pipeline.core import config
from pipeline.core.errors import UserError

CPUINFO = Path("/proc/cpuinfo")
# MKL has but this path for processors that are not Intel's; all else is AVX2, which they have had since 2013 to 2017.
PATHS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops
    "MKL_CBWR": "COMPATIBLE",  # torch's products of matrices
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's and SciPy's products of matrices
    "NPY_ENABLE_CPU_FEATURES": "X86_V3",  # exp and log, and in which order a sort leaves equal values
}


def pin() -> None:
    """Pin the code paths of this process and its children if `portable` is set: only before torch and NumPy load."""
    if not config.load().portable:
        return
    known = CPUINFO.read_text(encoding="utf-8").split() if CPUINFO.exists() else []
    if not {"avx2", "fma"} <= set(known):
        raise UserError("portable needs Linux on an x86-64 processor with AVX2: set it to false")
    os.environ.pop("NPY_DISABLE_CPU_FEATURES", None)  # NumPy refuses to be told both
    os.environ.update(PATHS)
