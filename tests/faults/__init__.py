"""Faults put into tiny runs on purpose, and what came of each; `python -m tests.faults -h`."""
