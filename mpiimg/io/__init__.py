"""Formats and stores: NIfTI, gradient tables, the staged file, the journal."""
