"""What a user can do besides `dvc repro`."""
