"""Refuse an environment in which two MPI libraries would share a process, or h5py is of the other kind.

Usage: ``python install/check_mpi.py wheel|system``, with the Python of the environment.
"""

import importlib.metadata
import pathlib
import re
import sys

#: Files that hold an MPI library proper; its Fortran, C++ and tool companions bear longer names.
MPI_LIBRARY = re.compile(r"lib(mpi|mpich|mpi_abi|mpi_cray|mpi_gnu[_0-9]*|mpi_intel|mpi_nvidia)\.so")


def mpi_libraries() -> list[str]:
    """Return the paths of the MPI libraries mapped into this process, sorted."""
    maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
    paths = {fields[5] for line in maps if len(fields := line.split(maxsplit=5)) == 6}
    return sorted({path for path in paths if MPI_LIBRARY.match(pathlib.PurePath(path).name)})


def has_distribution(name: str) -> bool:
    """Return whether the distribution `name` is installed in this environment."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def problems(kind: str) -> list[str]:
    """Return what is wrong with this environment as an install of `kind`, one sentence each."""
    import mpi4py

    mpi4py.rc.initialize = False  # a login node may refuse MPI_Init, and loading the libraries is enough
    import h5py
    from mpi4py import MPI

    found = []
    libraries = mpi_libraries()
    if len(libraries) != 1:
        found.append(f"{len(libraries)} MPI libraries share a process: {', '.join(libraries) or 'none'}.")
    if kind == "system" and not h5py.get_config().mpi:
        found.append("h5py was built without MPI.")
    if kind == "system" and has_distribution("mpich"):
        found.append("The mpich wheel is installed beside the site's MPI.")
    if kind == "wheel" and not all(path.startswith(sys.prefix) for path in libraries):
        found.append(f"mpi4py took {', '.join(libraries)} in place of the MPI of this environment.")
    print(f"   {MPI.Get_library_version().splitlines()[0].strip(', ')}; h5py {h5py.__version__},", end=" ")
    print(f"HDF5 {h5py.version.hdf5_version}, {'parallel' if h5py.get_config().mpi else 'serial'}")
    return found


if __name__ == "__main__":
    messages = problems(sys.argv[1])
    for message in messages:
        print(f"mpiimg install: {message}", file=sys.stderr)
    sys.exit(1 if messages else 0)
