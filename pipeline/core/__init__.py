"""What `params.yaml` may say, how files are written, and how mistakes are reported."""
