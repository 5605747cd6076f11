"""mpiimg-doctor: what a site asks first."""
