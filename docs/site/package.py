# Spack recipe: var/spack/repos/<site>/packages/py-mpiimg/package.py, then `spack install py-mpiimg ^openmpi`.
from spack.package import *


class PyMpiimg(PythonPackage):
    """Scientific image pipelines as MPI programs: diffusion MRI and sky surveys on HPC clusters."""

    # The checkout, or an archive of it, that the site keeps: spack has no other place to take it from.
    url = "file:///path/to/mpiimg-0.1.0.tar.gz"

    license("BSD-3-Clause")

    version("0.1.0")

    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-setuptools", type="build")
    depends_on("mpi")
    depends_on("py-mpi4py@4:", type=("build", "run"))
    depends_on("py-h5py@3.10: +mpi", type=("build", "run"))
    depends_on("py-astropy@6:", type=("build", "run"))
    depends_on("py-cloudpickle@3:", type=("build", "run"))
    depends_on("py-deflate@0.7:", type=("build", "run"))
    depends_on("py-dipy@1.12:", type=("build", "run"))
    depends_on("py-isal@1.6:", type=("build", "run"))
    depends_on("py-jinja2@3.1:", type=("build", "run"))
    depends_on("py-matplotlib", type=("build", "run"))
    depends_on("py-nibabel@5:", type=("build", "run"))
    depends_on("py-numba@0.60:", type=("build", "run"))
    depends_on("py-numpy@1.26:", type=("build", "run"))
    depends_on("py-pillow@10.1:", type=("build", "run"))
    depends_on("py-scipy@1.11:", type=("build", "run"))
    depends_on("py-sep@1.4:", type=("build", "run"))
    depends_on("py-tqdm", type=("build", "run"))
