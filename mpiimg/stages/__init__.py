"""The science: what each step reads, writes and needs, and which kernel it calls."""
