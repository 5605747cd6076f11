"""The operations on dask.array, and on dask.bag and dask.delayed where there is no array."""

import cases
import dask
import dask.array as da
import dask.bag as db
import numpy as np

SERIES = da.from_array(cases.SERIES, chunks=(12, 10, 4, 1))
VOXELS = SERIES.rechunk((12, 10, 4, -1))


def same_shape():
    return SERIES.map_blocks(cases.scaled).compute()


def outputs():
    return dask.compute(*da.apply_gufunc(cases.peak, "(t)->(),()", VOXELS, output_dtypes=("f4", "i8")))


def other_shape():
    return da.coarsen(np.mean, SERIES[2:10], {0: 2, 1: 2}).transpose().compute()


def stencil():
    return SERIES.map_overlap(cases.median_of_volumes, depth=(1, 1, 1, 0), boundary="none").compute()


def plane():
    image = da.from_array(cases.PLANE, chunks=(128, 128))
    return image.map_overlap(cases.lowest, depth=2, boundary="none").compute()


def over_time():
    return SERIES.mean(axis=-1, dtype="f8").compute()


def over_space():
    return SERIES.sum(axis=1).compute()


def ragged():
    volumes = [SERIES[..., t] for t in range(SERIES.shape[-1])]
    return list(dask.compute(*(dask.delayed(cases.places)(volume) for volume in volumes)))


def value():
    return (SERIES - SERIES.max()).compute()


def own_map():
    mask = (VOXELS.max(axis=-1) > 900)[..., None]
    return da.map_blocks(cases.inside_of, VOXELS, mask, drop_axis=3, dtype="f4").compute()


def join():
    reference = da.from_array(cases.REFERENCE, chunks=(12, 10, 4))[..., None]
    return da.map_blocks(cases.corrected, SERIES, reference, dtype="f4").compute()


def group():
    volumes = db.from_sequence(np.moveaxis(cases.SERIES, -1, 0))
    halves = volumes.map(lambda volume: list(cases.halves(volume))).flatten()
    sums = halves.foldby(lambda pair: pair[0], lambda total, pair: total + pair[1], 0, lambda a, b: a + b, 0)
    return dict(sorted(sums.compute()))


def loop():
    state, passes = SERIES.persist(), 0
    while state.max().compute() >= 1:
        state, passes = (state / 2).persist(), passes + 1
    return state.compute(), passes


def reader():
    read = da.map_blocks(_read_block, chunks=SERIES.chunks, dtype="f4")
    return read.map_blocks(cases.scaled).compute()


def _read_block(block_info=None):
    return cases.read_series(tuple(slice(*bounds) for bounds in block_info[None]["array-location"]))


def in_memory():
    return da.from_array(cases.SERIES).max(axis=(0, 1, 2)).compute()


def complex():
    return da.apply_gufunc(cases.spectrum, "(t)->(t)", VOXELS, output_dtypes="c8").compute()
