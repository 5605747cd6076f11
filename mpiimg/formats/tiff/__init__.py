"""TIFF, BigTIFF and OME-TIFF."""

from mpiimg.formats.interface import Format
from mpiimg.formats.tiff.reading import read
from mpiimg.formats.tiff.writing import write, write_ome

TIFF = Format("TIFF", read, write, needs="tiff")

OME_TIFF = Format("OME-TIFF", read, write_ome, needs="tiff")
