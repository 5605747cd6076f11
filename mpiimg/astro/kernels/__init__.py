"""Kernels of sky surveys: arrays and scalars in, arrays out."""
