"""Train the network of `model`."""
