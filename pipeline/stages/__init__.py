"""The DVC stages: one folder each, with the entry point in `stage.py`."""
