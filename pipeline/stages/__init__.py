"""One module a DVC stage: load, build, fit, save, log."""

import sys

from pipeline import console, processor

# Here, since Python runs a package before its module, and that imports torch; "-m" while it looks for the module.
if sys.argv[0] == "-m":
    console.run(processor.pin)
