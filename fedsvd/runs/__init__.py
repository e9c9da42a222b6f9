"""The run directory and its record."""
