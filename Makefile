# mpiimg: make help says what there is, docs/install.md says more.

MPI ?= wheel
OUT ?= demo
SIZE ?= small
PAGE ?= $(if $(filter medium,$(SIZE)),docs/comparison.md)
MPI_TIMEOUT ?= 600
LANES ?= 2

VENV := $(if $(filter system,$(MPI)),.venv-mpi,.venv)

# What the install scripts and the tests read; empty where nobody set it.
export PYTHON WARM APT CACHE WHEELHOUSE PREFIX MPICC HDF5_PKGCONFIG_NAME HDF5_DIR RANKS MPI_TIMEOUT LANES

.PHONY: help install wheelhouse lock demo docs test test-long lint bench bench-systems bench-scaling bench-roofline noise-tables sky-tables clean distclean

help:
	@echo 'make install              .venv: MPI and all else from wheels, no root'
	@echo 'make install MPI=system   .venv-mpi: mpi4py and h5py on the MPI and parallel HDF5 of this machine'
	@echo 'make wheelhouse           .cache/wheelhouse: all packages, to install from where there is no network'
	@echo 'make demo [OUT=demo]      simulate a head and a survey, process them and real data, a page on each'
	@echo 'make docs                 build/docs: these documents as a site, with a reference of tools and Python'
	@echo 'make test                 all tests, on both installs: 1 and 3 ranks on one, 2 and 4 on the other'
	@echo 'make test-long            the slow variants, and 1 to 4 ranks on both installs'
	@echo 'make lint                 ruff, and the types of what scripts use'
	@echo 'make bench                speed, with the peers in the same run'
	@echo 'make bench-systems        both pipelines beside Dask, Spark and others, in .venv-bench; SIZE=$(SIZE)'
	@echo '                          SIZE=medium makes the figures of docs/comparison.md anew'
	@echo 'make bench-scaling        what grows with the number of ranks'
	@echo 'make bench-roofline       what share of the machine'"'"'s limits each kernel reaches'
	@echo 'make noise-tables DATA=DIR  the tables of docs/noise.md, of the diffusion series below DIR'
	@echo 'make sky-tables           the tables of docs/sky-truth.md, of skies that GalSim draws'
	@echo 'make clean                remove what was compiled (.cache stays)'
	@echo 'make distclean            remove the installs and .cache as well'
	@echo
	@echo 'Variables: PYTHON=python3.12  WARM=0 (do not compile the kernels now)  APT=0 (install no Debian packages)'
	@echo '           CACHE=.cache  WHEELHOUSE=folder (install from it, without a network)'
	@echo '           PREFIX=folder (install there, apart from the checkout)  and for MPI=system: MPICC=  HDF5_PKGCONFIG_NAME=  HDF5_DIR='
	@echo '           and for make test: RANKS="1 2 3 4" (on both installs)  MPI_TIMEOUT=600 (seconds for a job of tests)'
	@echo '           LANES=2 (blocks of tests at a time)'

install:
	@install/install.sh $(MPI)

wheelhouse: install
	@install/wheelhouse.sh $(or $(WHEELHOUSE),.cache/wheelhouse)

lock: install
	@install/wheelhouse.sh lock

docs:
	@install/install.sh docs
	@.venv/bin/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo 'build/docs/index.html'

demo: install
	@$(VENV)/bin/python -m mpiimg.demo $(OUT)

test:
	@tests/run.sh "not long"

test-long:
	@tests/run.sh long

lint:
	@install/install.sh wheel
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench:
	@install/install.sh wheel
	@.venv/bin/python benchmarks/run.py

bench-systems:
	@benchmarks/install.sh
	@.venv-bench/bin/python benchmarks/side_by_side.py --size $(SIZE) $(if $(PAGE),--page $(PAGE))

bench-scaling:
	@install/install.sh wheel
	@.venv/bin/python benchmarks/scaling.py

bench-roofline:
	@install/install.sh wheel
	@.venv/bin/python benchmarks/roofline.py

noise-tables:
	@install/install.sh wheel
	@.venv/bin/python benchmarks/noise.py $(DATA)

sky-tables:
	@install/install.sh wheel
	@PYTHONPATH=$$(benchmarks/galsim.sh) .venv/bin/python benchmarks/sky_truth.py $(TABLES)

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache
	find mpiimg tests benchmarks install -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-mpi .venv-bench .cache
