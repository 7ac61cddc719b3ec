"""Where the table comes from."""
