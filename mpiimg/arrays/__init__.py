"""Pipelines of a user's own, in public names: lazy arrays, items and tables."""
