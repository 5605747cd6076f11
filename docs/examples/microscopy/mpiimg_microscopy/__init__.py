"""Time-lapse microscopy, a domain of its own for mpiimg."""
