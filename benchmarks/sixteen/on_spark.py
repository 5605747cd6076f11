"""The operations on Spark's RDDs, whose records are volumes by number, or slabs of all volumes."""

import os
import sys
from pathlib import Path

import cases
import numpy as np
from pyspark import SparkContext

# Its Python workers find the functions that lie beside this file.
os.environ |= {"PYTHONPATH": str(Path(__file__).parent), "PYSPARK_PYTHON": sys.executable}
SPARK = SparkContext.getOrCreate()
VOLUMES = SPARK.parallelize(list(enumerate(np.moveaxis(cases.SERIES, -1, 0))), 3)
SLABS = SPARK.parallelize(list(enumerate(np.array_split(cases.SERIES, 3))), 3)

#: There is no stencil: the edges of slabs are sent and put together here.
BY_HAND = ("stencil", "plane")


def _stack(rdd):
    return np.stack([volume for _, volume in sorted(rdd.collect(), key=lambda pair: pair[0])], axis=-1)


def _join(rdd):
    return np.concatenate([slab for _, slab in sorted(rdd.collect(), key=lambda pair: pair[0])])


def same_shape():
    return _stack(VOLUMES.mapValues(cases.scaled))


def outputs():
    peaks = SLABS.mapValues(cases.peak).cache()
    return tuple(_join(peaks.mapValues(lambda both, n=n: both[n])) for n in range(2))


def other_shape():
    def crop(volume):
        return volume[2:10].reshape(4, 2, 5, 2, 8).mean(axis=(1, 3))

    return _stack(VOLUMES.mapValues(crop)).transpose()


def stencil():
    def send(pair):
        number, slab = pair
        yield number, (1, slab)
        yield number - 1, (2, slab[:1])
        yield number + 1, (0, slab[-1:])

    def work(parts):
        known = dict(parts)
        block = cases.median_of_volumes(np.concatenate([known[place] for place in sorted(known)]))
        return block[len(known.get(0, ())) :][: len(known[1])]

    sent = SLABS.flatMap(send).filter(lambda pair: 0 <= pair[0] < 3)
    return _join(sent.groupByKey().mapValues(work))


def plane():
    padded, rows = np.pad(cases.PLANE, 2, "symmetric"), 100
    strips = [(row, padded[row : row + rows + 4]) for row in range(0, len(cases.PLANE), rows)]
    return _join(SPARK.parallelize(strips).mapValues(lambda strip: cases.lowest(strip)[2:-2, 2:-2]))


def over_time():
    total = VOLUMES.values().map(lambda volume: volume.astype("f8")).reduce(np.add)
    return total / VOLUMES.count()


def over_space():
    return _stack(VOLUMES.mapValues(lambda volume: volume.sum(axis=1)))


def ragged():
    return [found for _, found in sorted(VOLUMES.mapValues(cases.places).collect(), key=lambda pair: pair[0])]


def value():
    largest = SPARK.broadcast(VOLUMES.values().map(np.max).max())
    return _stack(VOLUMES.mapValues(lambda volume: volume - largest.value))


def own_map():
    masks = SLABS.mapValues(lambda slab: slab.max(axis=-1) > 900)
    return _join(SLABS.join(masks).mapValues(lambda pair: cases.inside(*pair)))


def join():
    references = SPARK.parallelize(list(enumerate(np.array_split(cases.REFERENCE[..., None], 3))), 3)
    return _join(SLABS.join(references).mapValues(lambda pair: cases.corrected(*pair)))


def group():
    halves = VOLUMES.values().flatMap(cases.halves)
    return dict(sorted(halves.groupByKey().mapValues(sum).collect()))


def loop():
    state, passes = VOLUMES.cache(), 0
    while state.values().map(np.max).max() >= 1:
        state, passes = state.mapValues(lambda volume: volume / 2).cache(), passes + 1
    return _stack(state), passes


def reader():
    boxes = SPARK.parallelize([(t, (..., t)) for t in range(cases.SERIES.shape[-1])], 3)
    return _stack(boxes.mapValues(cases.read_series).mapValues(cases.scaled))


def in_memory():
    return _stack(VOLUMES.mapValues(np.max))


def complex():
    return _join(SLABS.mapValues(cases.spectrum))
