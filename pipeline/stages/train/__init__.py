"""Train the network."""
