"""Prints a digest of what each of some random graphs comes to, the same in every process: run by mpiexec.

python graph_digests.py FOLDER EXAMPLES [MEMORY]
"""

import hashlib
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from hypothesis import HealthCheck, given, settings
from support.random_graphs import graphs

import mpiimg as mi


def main(folder, examples, memory=None):
    digests = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(pair=graphs())
    def run(pair):
        made = np.asarray(pair.lazy.compute())
        digests.append(hashlib.sha256(repr((made.dtype, made.shape)).encode() + made.tobytes()).hexdigest())

    warnings.simplefilter("ignore")
    with mi.session(folder, memory=memory):
        run()
    # In one piece, so that the lines of two ranks do not mingle.
    sys.stdout.write("".join(f"{one}\n" for one in digests))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
