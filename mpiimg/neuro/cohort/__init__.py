"""Many scans: the subjects of a BIDS dataset, done by groups of ranks."""
