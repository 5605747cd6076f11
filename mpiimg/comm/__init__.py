"""Moves arrays between ranks: no formats, no science."""
