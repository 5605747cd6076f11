"""Means of many groups of values, each without its outliers."""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel

#: A group's outliers are looked for again at most so many times.
PASSES = 10


@kernel
def robust_means(values, errors, starts, deviations, clip):
    """Return the weighted mean of each group, clipped about its median, its error, and how many are left.

    Values further from the mean than `deviations` times the median absolute deviation, or `clip` times their
    own error where that is more, are left out. The error grows with the scatter where that is more than the
    errors say.

    Parameters
    ----------
    values, errors : (n,) float64
    starts : (groups + 1,) int64
        Where each group begins; ends with n.
    deviations, clip : float64

    Returns
    -------
    (groups,) float64, (groups,) float64, (groups,) int64
        NaN, NaN and 0 for a group without values.
    """
    groups = len(starts) - 1
    means, sigmas = np.full(groups, np.nan), np.full(groups, np.nan)
    counts = np.zeros(groups, np.int64)
    apart = np.empty(np.max(np.diff(starts)) if groups else 0)
    for group in range(groups):
        value, error = values[starts[group] : starts[group + 1]], errors[starts[group] : starts[group + 1]]
        count = len(value)
        if not count:
            continue
        inlier = np.ones(count, np.bool_)
        centre = np.median(value)
        for _ in range(PASSES):
            n = 0
            for k in range(count):
                if inlier[k]:
                    apart[n] = abs(value[k] - centre)
                    n += 1
            if n == 0:
                break
            reach = deviations * np.median(apart[:n])
            weight, total, changed = 0.0, 0.0, False
            before = centre
            for k in range(count):
                inside = abs(value[k] - before) <= max(reach, clip * error[k])
                changed |= inside != inlier[k]
                inlier[k] = inside
                if inside:
                    weight += 1 / error[k] ** 2
                    total += value[k] / error[k] ** 2
            centre = total / weight
            if not changed:
                break
        n, weight, excess = 0, 0.0, 0.0
        for k in range(count):
            if inlier[k]:
                n += 1
                weight += 1 / error[k] ** 2
                excess += (value[k] - centre) ** 2 / error[k] ** 2
        if n:
            means[group], counts[group] = centre, n
            sigmas[group] = np.sqrt(max(excess / max(n - 1, 1), 1.0) / weight)
    return means, sigmas, counts


def precompile() -> None:
    """Call the kernel on two stars."""
    robust_means(np.ones(2), np.ones(2), np.array([0, 2]), 6.0, 4.0)
