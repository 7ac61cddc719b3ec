"""Read the source table."""
