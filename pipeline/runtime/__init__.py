"""How a process starts, shows progress and ends."""
