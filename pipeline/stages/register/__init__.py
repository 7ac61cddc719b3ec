"""Choose the best model and register it."""
