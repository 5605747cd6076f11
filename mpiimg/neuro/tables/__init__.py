"""Gradient tables: read as people have them, and understood."""
