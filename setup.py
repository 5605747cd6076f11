"""Install mpiimg: `pip install .` for plain mpi4py and h5py, `pip install .[mpich]` for MPI from a wheel."""

import pathlib
import re

from setuptools import find_packages, setup

#: What only some formats need, each under the name that messages give: pip install 'mpiimg[zarr]'.
FORMATS = {
    "parquet": ["pyarrow"],
    "tiff": ["imagecodecs", "tifffile"],
    "zarr": ["zarr>=3.1"],
}

here = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "mpiimg" / "version.py").read_text()).group(1)

setup(
    name="mpiimg",
    version=version,
    description="Scientific image pipelines as MPI programs: diffusion MRI and sky surveys on HPC clusters",
    long_description=(here / "README.md").read_text() if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["mpiimg", "mpiimg.*"]),
    package_data={"mpiimg.astro": ["instruments/*.toml"]},
    scripts=sorted(str(p.relative_to(here)) for p in (here / "bin").glob("mpiimg-*")),
    install_requires=[
        "astropy>=6",
        "cloudpickle>=3",
        "deflate>=0.7",
        "dipy>=1.12",
        "h5py>=3.10",
        "isal>=1.6",
        "jinja2>=3.1",
        "matplotlib",
        "mpi4py>=4",
        "nibabel>=5",
        "numba>=0.60",
        "numpy>=1.26",
        "pillow>=10.1",
        "scipy>=1.11",
        "sep>=1.4",
        "tqdm",
    ],
    extras_require={
        **FORMATS,
        "all": sorted(package for packages in FORMATS.values() for package in packages),
        "mpich": ["mpich"],
        "xarray": ["xarray"],
        "test": [
            "astroscrappy",
            "bidsschematools",
            "hypothesis",
            "pytest",
            "pytest-mpi",
            "ruff",
            "xarray",
        ],
    },
)
