"""What MLflow knows of a run, and how it gets there."""
