-- Module file (Lmod) for an install made by: make install MPI=system PREFIX=/sw/mpiimg/0.1.0
help([[Scientific image pipelines as MPI programs. Begin with: mpiexec -n 2 mpiimg-doctor --dir $SCRATCH]])
whatis("Name: mpiimg")
whatis("Version: 0.1.0")

local prefix = "/sw/mpiimg/0.1.0"

-- The modules that were loaded when it was installed.
depends_on("python/3.11", "openmpi/4.1", "hdf5/1.14-mpi")

prepend_path("PATH", pathJoin(prefix, "bin"))
setenv("MPIIMG_VENV", prefix)
setenv("OMP_NUM_THREADS", "1")
