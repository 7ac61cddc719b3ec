"""One module a DVC stage: load, build, fit, save, log."""
