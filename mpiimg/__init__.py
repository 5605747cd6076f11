"""mpiimg runs scientific image pipelines as MPI programs. See docs/architecture.md."""

__version__ = "0.1.0"
