"""A frame of stars, to time the kernels of the survey's steps on."""

import numpy as np


def frame(side: int = 512) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, variance and mask of a frame of stars with cosmic rays, (side, side)."""
    rng = np.random.default_rng(3)
    image = rng.normal(200, 14, (side, side))
    y, x = np.mgrid[-6:7, -6:7]
    star = np.exp(-(x**2 + y**2) / 4.5)
    for row, column in rng.integers(8, side - 8, (side * side // 4000, 2)):
        image[row - 6 : row + 7, column - 6 : column + 7] += rng.exponential(3000) * star
    rows, columns = rng.integers(0, side, (2, side * side // 2000))
    image[rows, columns] += 2000
    return image.astype(np.float32), np.full((side, side), 200, np.float32), np.zeros((side, side), np.int32)
