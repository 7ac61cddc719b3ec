"""Score a model on validation and test rows."""
