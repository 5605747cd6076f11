"""Formats that are of no domain: how arrays are read from files and written to them."""
