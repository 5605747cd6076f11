"""Where the volumes of a series lie in q-space: their shells, and which of them are near one another."""

from __future__ import annotations

import numpy as np

from mpiimg.neuro.gradients import Gradients
from mpiimg.neuro.tables.shells import shells_of


def shells(gradients: Gradients) -> np.ndarray:
    """Return the mean b-value of the shell of each volume, (V,) float64 s/mm^2; 0 for all b0s."""
    shell = np.zeros(len(gradients.bvals))
    for one in shells_of(gradients.bvals, gradients.b0_threshold):
        if one.high > gradients.b0_threshold:
            shell[list(one.volumes)] = one.b
    return shell


def nearest_in_q(gradients: Gradients) -> np.ndarray:
    """Order the weighted volumes by their distance in q-space from each weighted volume.

    A place in q-space is the direction times the root of the b-value; a direction and its opposite are one.

    Returns
    -------
    (V, W - 1) int64
        Of W weighted volumes, the nearest first, of those at one distance that with the lower number; -1 for
        b0s.

    References
    ----------
    Yeh et al. 2019, doi:10.1016/j.neuroimage.2019.116131; `find_qspace_neighbors` of DIPY.
    """
    bvals = np.array(gradients.bvals)
    places = np.sqrt(bvals)[:, None] * np.array(gradients.bvecs).reshape(-1, 3)
    weighted = np.flatnonzero(bvals > gradients.b0_threshold)
    order = np.full((len(bvals), max(len(weighted) - 1, 0)), -1)
    for volume in weighted:
        others = weighted[weighted != volume]
        order[volume] = others[np.argsort(_distances(places[others], places[volume]), kind="stable")]
    return order


def nearest_in_shell(gradients: Gradients) -> list[np.ndarray]:
    """Order the other volumes of each volume's shell: by direction, b0s by when they were acquired."""
    shell, in_q = shells(gradients), nearest_in_q(gradients)
    b0s = np.array(gradients.b0, np.int64)
    near = []
    for volume, of_shell in enumerate(shell):
        if volume in gradients.b0:
            others = b0s[b0s != volume]
            near.append(others[np.argsort(np.abs(others - volume), kind="stable")])
        else:
            near.append(in_q[volume][shell[in_q[volume]] == of_shell])
    return near


def _distances(places: np.ndarray, place: np.ndarray) -> np.ndarray:
    apart = [np.sqrt(((places - sign * place) ** 2).sum(axis=1)) for sign in (1, -1)]
    return np.minimum(*apart)
