"""What kernels are kept in on disk: files with a checksum, and whose a folder or a file is."""
