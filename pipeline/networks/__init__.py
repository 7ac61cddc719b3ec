"""What a network is, in memory and on disk."""
