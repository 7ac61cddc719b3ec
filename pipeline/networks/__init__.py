"""Networks in memory and on disk."""
