"""Obvious loop versions of every kernel: slow, short, and easy to believe."""
