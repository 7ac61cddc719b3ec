"""`portable`: pin libraries to CPU code paths that x86-64 processors of every make share."""

import os
from pathlib import Path

from pipeline.core import config
from pipeline.core.errors import UserError

CPUINFO = Path("/proc/cpuinfo")
# MKL shares only this path with other makes; the rest is AVX2, available since 2013 to 2017.
PATHS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "MKL_CBWR": "COMPATIBLE",  # torch's matrix products
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",  # matrix products of NumPy and SciPy
    "NPY_ENABLE_CPU_FEATURES": "X86_V3",  # exp, log, and the order of equal values in a sort
}


def pin() -> None:
    """Pin this process and its children if `portable` is set; must be called before torch and NumPy are imported."""
    if not config.load().portable:
        return
    known = CPUINFO.read_text(encoding="utf-8").split() if CPUINFO.exists() else []
    if not {"avx2", "fma"} <= set(known):
        raise UserError("portable needs Linux on an x86-64 processor with AVX2: set it to false")
    os.environ.pop("NPY_DISABLE_CPU_FEATURES", None)  # NumPy rejects both variables together
    os.environ.update(PATHS)
