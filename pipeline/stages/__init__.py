"""One module a DVC stage: load, build, fit, save, log."""

import sys

from pipeline.core import portable
from pipeline.runtime import console

# Here, since Python runs a package before its module, and that imports torch; "-m" while it looks for the module.
if sys.argv[0] == "-m":
    console.run(portable.pin)
