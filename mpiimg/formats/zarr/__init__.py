"""Zarr, and OME-Zarr."""

from mpiimg.formats.interface import Format
from mpiimg.formats.zarr.reading import read
from mpiimg.formats.zarr.writing import write, write_ome

ZARR = Format("Zarr", read, write, needs="zarr", folder=True)

OME_ZARR = Format("OME-Zarr", read, write_ome, needs="zarr", folder=True)
