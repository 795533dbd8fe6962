"""A run: its inputs, its stages, its directory, from the first command to its results."""
