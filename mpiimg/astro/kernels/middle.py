"""Co-addition by the median of exposures, which no outlier moves far, for a quarter more noise.

References
----------
Variance of a median of few normal values: F. Mosteller 1946, Ann. Math. Statist. 17, 377,
doi:10.1214/aoms/1177730881.
"""

from __future__ import annotations

import numpy as np

from mpiimg.astro.kernels.coadd import MaskValues, combine
from mpiimg.astro.kernels.compare import median

#: Of n normal values the median's variance is (pi / 2) / (n + this), n odd and n even, to 1 % from n = 3 on.
ODD, EVEN = 0.49, 1.28


def excess(n: np.ndarray) -> np.ndarray:
    """Return the variance of the median of n normal values over that of their mean, float32; 1 up to two."""
    n = np.asarray(n, np.float64)
    factor = (np.pi / 2) * n / (n + np.where(n % 2 == 1, ODD, EVEN))
    return np.where(n > 2, factor, 1.0).astype(np.float32)


def combine_median(
    images: np.ndarray,
    variances: np.ndarray,
    masks: np.ndarray,
    weights: np.ndarray,
    planes: MaskValues,
    variances_ls: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Take the median of exposures of one band, resampled to one grid.

    Parameters and planes are those of :func:`mpiimg.astro.kernels.coadd.combine`. All exposures count alike
    but those of weight zero, which are left out; variances are those of the mean times :func:`excess`, which
    is right where exposures are equally deep.
    """
    alike = (np.asarray(weights) > 0).astype(np.float64)
    _, variance, mask, n_image, *more = combine(
        images, variances, masks, alike, planes, "mean", variances_ls=variances_ls
    )
    used = np.isfinite(images) & np.isfinite(variances) & (variances >= 0) & ((masks & planes.excluded) == 0)
    used &= (alike > 0)[:, None, None]
    middle, _ = median(np.where(used, images, np.float32(np.nan)), np.ones(len(images), np.float32))
    factor = excess(n_image)
    return middle, variance * factor, mask, n_image, *(plane * factor for plane in more)


def precompile() -> None:
    """Call the kernels on three inputs."""
    stack = [np.ones((3, 8, 18), dtype) for dtype in (np.float32, np.float32, np.int32)]
    combine_median(*stack, np.ones(3), MaskValues(1, 2, 4, 8))
