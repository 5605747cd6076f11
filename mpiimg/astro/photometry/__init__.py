"""Measurements of stars and sources, and the zero points that make exposures agree."""
