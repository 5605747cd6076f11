"""Coordinates on the sky: tracts, patches, and which exposure meets which patch."""
