"""Score a model on test rows."""
