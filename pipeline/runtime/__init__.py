"""Process start, progress and exit."""
