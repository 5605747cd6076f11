"""The operations on Cubed, which keeps every array in Zarr and within a limit of memory."""

import cases
import cubed
import cubed.array_api as xp
import numpy as np

SERIES = cubed.from_array(cases.SERIES, chunks=(12, 10, 4, 1))
VOXELS = SERIES.rechunk((12, 10, 4, 6))

#: Beyond the ends of an array it has constants alone, and what a block has more the function cuts off.
BY_HAND = ("stencil", "plane")


def same_shape():
    return cubed.map_blocks(cases.scaled, SERIES, dtype="f4").compute()


def other_shape():
    def crop(block):
        return block.reshape(4, 2, 5, 2, *block.shape[2:]).mean(axis=(1, 3))

    cropped = SERIES[2:10].rechunk((8, 10, 4, 1))
    small = cubed.map_blocks(crop, cropped, dtype="f4", chunks=((4,), (5,), (4, 4), (1,) * 6))
    return xp.permute_dims(small, (3, 2, 1, 0)).compute()


def stencil():
    padded = np.pad(cases.SERIES, ((1, 1), (1, 1), (1, 1), (0, 0)), "symmetric")
    image = cubed.from_array(padded, chunks=(7, 6, 5, 1))
    depth = {0: 1, 1: 1, 2: 1}
    wide = cubed.map_overlap(
        lambda block: cases.median_of_volumes(block)[1:-1, 1:-1, 1:-1],
        image, dtype="f4", chunks=image.chunks, depth=depth, boundary=0,
    )  # fmt: skip
    return wide[1:-1, 1:-1, 1:-1].compute()


def plane():
    image = cubed.from_array(np.pad(cases.PLANE, 2, "symmetric"), chunks=(128, 128))
    wide = cubed.map_overlap(
        lambda block: cases.lowest(block)[2:-2, 2:-2],
        image, dtype="u2", chunks=image.chunks, depth=2, boundary=0,
    )  # fmt: skip
    return wide[2:-2, 2:-2].compute()


def over_time():
    return xp.mean(xp.astype(SERIES, xp.float64), axis=-1).compute()


def over_space():
    return xp.sum(SERIES, axis=1, dtype=xp.float32).compute()


def value():
    return (SERIES - xp.max(SERIES)).compute()


def own_map():
    mask = xp.max(VOXELS, axis=-1) > 900
    return cubed.apply_gufunc(cases.inside, "(t),()->()", VOXELS, mask, output_dtypes="f4").compute()


def join():
    reference = cubed.from_array(cases.REFERENCE, chunks=(12, 10, 4))[..., None]
    return cubed.map_blocks(cases.corrected, SERIES, reference, dtype="f4").compute()


def loop():
    state, passes = SERIES, 0
    while xp.max(state).compute() >= 1:
        state, passes = cubed.from_array((state / 2).compute(), chunks=SERIES.chunksize), passes + 1
    return state.compute(), passes


def reader():
    class Series:
        shape, dtype, ndim = cases.SERIES.shape, cases.SERIES.dtype, 4

        def __getitem__(self, box):
            return cases.read_series(box)

    return cubed.map_blocks(
        cases.scaled, cubed.from_array(Series(), chunks=(12, 10, 4, 1)), dtype="f4"
    ).compute()


def in_memory():
    return xp.max(cubed.from_array(cases.SERIES), axis=(0, 1, 2)).compute()


def complex():
    return cubed.apply_gufunc(cases.spectrum, "(t)->(t)", VOXELS, output_dtypes="c8").compute()
