"""Pin libraries to code paths that every x86-64 processor with AVX2 has, for the parameter `portable`."""

import os
from pathlib import Path

from pipeline.core import config
from pipeline.core.errors import UserError

CPUINFO = Path("/proc/cpuinfo")
PATHS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops
    "MKL_CBWR": "COMPATIBLE",  # torch's matrix products: the only path of MKL for processors of other makers than Intel
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",  # matrix products of NumPy and SciPy
    "NPY_ENABLE_CPU_FEATURES": "X86_V3",  # exp, log, and the order in which a sort leaves equal values
}


def pin() -> None:
    """Pin this process and its children if `portable` is set. Call it before torch and NumPy are imported."""
    if not config.load().portable:
        return
    known = CPUINFO.read_text(encoding="utf-8").split() if CPUINFO.exists() else []
    if not {"avx2", "fma"} <= set(known):
        raise UserError("portable needs Linux on an x86-64 processor with AVX2: set it to false")
    os.environ.pop("NPY_DISABLE_CPU_FEATURES", None)  # NumPy refuses both variables at once
    os.environ.update(PATHS)
