"""The scatter of values of which some are outliers."""

from __future__ import annotations

import numpy as np

from mpiimg.astro.constants import SIGMA_PER_MAD


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation that the median absolute deviation tells; infinite for no values."""
    if not values.size:
        return np.inf
    return float(SIGMA_PER_MAD * np.median(np.abs(values - np.median(values))))
