"""Log stage runs to MLflow without blocking the stage."""
