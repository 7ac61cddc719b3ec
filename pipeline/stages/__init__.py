"""What happens in each DVC stage: a folder a stage, with its entry point in `stage.py` and what only it needs."""
