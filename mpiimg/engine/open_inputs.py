"""The inputs of a run that are open: few at a time, however many there are."""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from mpiimg.engine.array import AnyArray
from mpiimg.engine.boxes import Box
from mpiimg.engine.inputs import Input, Reader

#: A rank has no more inputs open at once than this, and this share of the files that it may have open.
MOST_OPEN, SHARE = 256, 4


class OpenInputs:
    """Inputs, each of which is opened when it is read, and closed when others were read since.

    Parameters
    ----------
    inputs : sequence of Input
        Which every rank may read in any order.
    """

    def __init__(self, inputs: Sequence[Input]):
        self._inputs = {source.array.name: source for source in inputs}
        self._readers: OrderedDict[str, Reader] = OrderedDict()
        may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = MOST_OPEN if may_open == resource.RLIM_INFINITY else min(MOST_OPEN, may_open // SHARE)

    def __contains__(self, name: str) -> bool:
        return name in self._inputs

    def array(self, name: str) -> AnyArray:
        """Return the array that an input is in the run."""
        return self._inputs[name].array

    def read(self, name: str, box: Box) -> np.ndarray:
        """Return a box of an input; raises what its reader does."""
        reader = self._readers.get(name)
        if reader is None:
            while self._readers and len(self._readers) >= self._most:
                _, longest_unread = self._readers.popitem(last=False)
                longest_unread.close()
            reader = self._readers[name] = self._inputs[name].open()
        self._readers.move_to_end(name)
        return reader.read(box)

    def close(self) -> None:
        """Close all that are open; they are opened again when they are read."""
        while self._readers:
            self._readers.popitem()[1].close()
