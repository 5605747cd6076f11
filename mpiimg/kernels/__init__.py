"""Numbers only: arrays and scalars in, arrays out. No MPI, no files, no globals."""
