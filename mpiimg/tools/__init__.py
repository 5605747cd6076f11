"""The programs: what each says of itself, and how a command line becomes a run."""
