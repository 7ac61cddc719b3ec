"""Schema of a table, and its rows as tensors."""
