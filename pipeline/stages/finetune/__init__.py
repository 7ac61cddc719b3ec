"""Fine-tune the trained network."""
