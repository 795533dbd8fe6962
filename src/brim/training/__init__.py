"""The loop, its settings, and what it keeps on disk."""
