"""Kernels of diffusion MRI: arrays and scalars in, arrays out."""
