"""sep's extraction, with as much memory as it needs, and its global settings as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

#: Pixels above the threshold, and parts of a blend, that sep makes room for at first.
FIRST_PIXELS, FIRST_PARTS = 300_000, 1024


class TooManyParts(Exception):
    """A blend has more parts than sep was allowed to number."""


@contextlib.contextmanager
def _settings_of_sep() -> Iterator[None]:
    """Restore the settings that sep has for a whole process."""
    import sep

    pixels, parts = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    try:
        yield
    finally:
        sep.set_extract_pixstack(pixels)
        sep.set_sub_object_limit(parts)


def extract(
    image: np.ndarray,
    threshold: float,
    variance: np.ndarray,
    masked: np.ndarray,
    min_area: int,
    max_parts: int,
    **how: Any,
) -> Any:
    """Find the sources of an image without its background.

    Parameters
    ----------
    image, variance : (rows, columns) float32
    threshold : float
        Standard deviations of a pixel.
    masked : (rows, columns) bool
        Pixels that say nothing.
    min_area : int
        Pixels above the threshold that a source has at least.
    max_parts : int
        Most parts that a blend may be split into.
    **how
        As sep.extract has it.

    Returns
    -------
    What sep.extract returns.

    Raises
    ------
    TooManyParts
        There is a blend of more parts than `max_parts`.
    """
    import sep

    pixels, max_pixels = max(FIRST_PIXELS, image.size // 8), max(FIRST_PIXELS, image.size + 2)
    parts = min(FIRST_PARTS, max_parts)
    with _settings_of_sep():
        while True:
            sep.set_extract_pixstack(pixels)
            sep.set_sub_object_limit(parts)
            try:
                return sep.extract(image, threshold, var=variance, mask=masked, minarea=min_area, **how)
            except Exception as error:
                # sep has no exceptions of its own: the message tells.
                if "active object pixels" in str(error) and pixels < max_pixels:
                    pixels = min(4 * pixels, max_pixels)
                elif "sub-objects" in str(error) and parts < max_parts:
                    parts = min(4 * parts, max_parts)
                elif "sub-objects" in str(error):
                    raise TooManyParts(str(error)) from None
                else:
                    raise
