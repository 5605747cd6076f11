"""Diffusion MRI: images, gradients, and the steps from the scanner's image to maps."""
