"""Fine-tune the trained network on the transfer domain."""
