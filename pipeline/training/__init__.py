"""Training: loop, checkpoints, calibration."""
