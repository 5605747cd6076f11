"""NIfTI: what headers say, images in and images out."""
