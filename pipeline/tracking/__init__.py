"""Log stage runs to MLflow without making a stage wait for it."""
