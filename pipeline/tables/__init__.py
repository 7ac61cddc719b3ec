"""What a table is, and how its rows become tensors."""
