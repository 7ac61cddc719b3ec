"""Search the space of `search` with Optuna."""
