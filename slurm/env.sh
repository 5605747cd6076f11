# Sourced by the batch scripts in this folder: what a site sets once, for all of them. Edit it.
# docs/slurm.md explains the choices. A variable that is set when the job is submitted wins.

# Modules that the install was built with (make install MPI=system), for example:
# module load python/3.11 openmpi/4.1 hdf5/1.14-mpi

# The install to run: .venv-mpi is on the MPI of the site, .venv has an MPI of its own from a wheel.
if [ -z "${MPIIMG_VENV:-}" ]; then
    MPIIMG_VENV=$MPIIMG_HOME/.venv
    [ ! -x "$MPIIMG_HOME/.venv-mpi/bin/python" ] || MPIIMG_VENV=$MPIIMG_HOME/.venv-mpi
fi
export PATH=$MPIIMG_VENV/bin:$PATH

# How srun introduces the ranks to each other; with another one than its MPI knows, ranks do not find each other.
# pmi2: the MPI of the wheel, and most MPICH. pmix: most Open MPI. `srun --mpi=list` says what there is.
case $MPIIMG_VENV in
*-mpi) MPIIMG_SRUN_MPI=${MPIIMG_SRUN_MPI:-pmix} ;;
*) MPIIMG_SRUN_MPI=${MPIIMG_SRUN_MPI:-pmi2} ;;
esac

# More options of the srun that starts the ranks, for example --cpu-bind=cores --distribution=block.
MPIIMG_SRUN_OPTIONS=${MPIIMG_SRUN_OPTIONS:-}

# How often a job may go back into the queue, at its time limit or after a node has failed.
MPIIMG_REQUEUES=${MPIIMG_REQUEUES:-10}

# One rank a core, and no threads beside them.
export OMP_NUM_THREADS=1

# Compiled kernels come from where make install left them. Where a shared disk is slow, name a folder on a disk of
# each node, such as /local/$USER/kernels, which the first job on a node fills, in up to a minute. It is used only
# if nobody else can write there: it must be its user's, not writable by others, and no link.
# export NUMBA_CACHE_DIR=

# One rank that dies ends the step; without this the others may wait for it until the time limit.
export SLURM_KILL_BAD_EXIT=1
