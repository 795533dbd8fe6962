"""The version, in one place that can be read without importing torch."""

__version__ = "0.2.0"
