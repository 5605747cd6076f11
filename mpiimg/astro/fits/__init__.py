"""FITS files of exposures and of what is made of them."""
