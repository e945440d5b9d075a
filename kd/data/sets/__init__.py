"""Data sets by name, and your own folder."""
