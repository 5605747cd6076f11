"""The histogram of an image: whichever rank has a block counts its values, and the counts are added."""

import numpy as np

import mpiimg


@mpiimg.udf(over="slabs")
class Histogram:
    def __init__(self, bins=64, low=0.0, high=4000.0):
        self.edges = np.linspace(low, high, bins + 1)

    def partial(self, block):
        return np.histogram(block, self.edges)[0]

    def merge(self, one, other):
        return one + other

    def finish(self, counts):
        return {"edges": self.edges, "counts": counts}
