"""From the sources of patches to the rows of the catalogue: as many as are found, in every patch."""

from dataclasses import replace

import numpy as np
import pytest

from mpiimg.astro import catalogue, patch_sources
from mpiimg.astro.photometry.seams import joined
from mpiimg.astro.photometry.sources import DetectionSettings
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.survey import Survey

TRACT = Tract(150.0, 2.2, (2, 1), patch=100, border=10)
LAYOUT = Layout(
    (), tuple(Patch("r", patch, TRACT.outer(patch), TRACT.inner(patch)) for patch in TRACT.patches), ()
)
HOW = DetectionSettings(radii=(2.0, 4.0))


@pytest.fixture(scope="module")
def blocks():
    """The planes of both patches: the second is crowded, its stars stand on a lattice."""
    rng = np.random.default_rng(4)
    image = rng.normal(0, 1, TRACT.pixels).astype(np.float32)
    y, x = np.mgrid[: TRACT.pixels[0], : TRACT.pixels[1]]
    stars = [(20.0, 30.0), (70.0, 60.0), *((a, b) for a in range(106, 196, 9) for b in range(6, 96, 9))]
    for a, b in stars:
        image += np.float32(60) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 2 / 1.3**2).astype(np.float32)
    whole = (image, np.ones_like(image), np.zeros(image.shape, np.int32), np.full(image.shape, 9, np.int16))
    boxes = [tuple(slice(*bounds) for bounds in patch.outer) for patch in LAYOUT.patches]
    return [[plane[box][None] for plane in whole] for box in boxes]


def run(blocks):
    """Detect, count, and gather, as the executor does; return counts, rows, and who read a coadd again."""
    state = Survey(
        tract=TRACT,
        layout=LAYOUT,
        patches=LAYOUT.patch_planes(),
        patch_stats=patch_sources.stats_array(LAYOUT),
    )
    stage = patch_sources.detect(state, HOW)
    found = [stage.work(stage.chunk(i), *planes) for i, planes in enumerate(blocks)]
    stats = np.concatenate([stats for _, stats in found])
    counts = patch_sources.count_sources(state).finish(stats[:, :2]).value
    state = replace(state, source_counts=counts, catalogue=patch_sources.rows_array(counts))
    gather = patch_sources.gather_rows(state, HOW)
    sources, *coadds = gather.reads
    rows, again = [], []
    for i in range(len(LAYOUT.patches)):
        chunk = gather.chunk(i)
        kept = sources.join([found[i][0][:, slice(*box[1])] for box in sources.boxes(chunk)])
        again.append(any(need.boxes(chunk) for need in coadds))
        planes = blocks[i] if again[i] else [None] * 4
        rows.append(gather.work(chunk, kept, *planes)[0])
        (((start, stop),),) = gather.targets[0].boxes(chunk)
        assert (start, stop - start) == (sum(map(len, rows[:-1])), len(rows[-1]))
    return counts, np.concatenate(rows), again


def test_a_crowded_patch_loses_no_source(blocks, monkeypatch):
    monkeypatch.setattr(patch_sources, "PIXELS_PER_SOURCE", 10)
    counts, wide, again = run(blocks)
    assert again == [False, False] and counts[1] > 95
    monkeypatch.setattr(patch_sources, "PIXELS_PER_SOURCE", 300)
    assert patch_sources.capacity(LAYOUT) == 37 < counts[1]
    same, rows, again = run(blocks)
    assert again == [False, True]
    assert same == counts
    assert rows.tobytes() == wide.tobytes()


def test_rows_have_their_places_on_the_sky_and_seams_are_matched(blocks):
    counts, data, _ = run(blocks)
    table = joined(LAYOUT.patches, counts, data)
    assert len(table) == sum(counts) and table.dtype == catalogue.ROW_TYPE
    np.testing.assert_allclose(
        TRACT.wcs.all_world2pix(table["ra"], table["dec"], 0)[0], table["x"], atol=1e-6
    )
    assert set(table["patch"]) == {b"patch-0-0", b"patch-1-0"}
    assert np.unique(table["id"]).size == len(table)
    assert 0 < table["is_primary"].sum() <= len(table)


def test_no_source_at_all():
    nothing = joined(LAYOUT.patches, (0, 0), np.empty(0, np.uint8))
    assert len(nothing) == 0 and nothing.dtype == catalogue.ROW_TYPE


def test_pixels_of_a_source_that_another_patch_has_say_elsewhere(blocks):
    """The stars at column 106 reach into the first patch, which ends at 100."""
    detected = patch_sources._detected(LAYOUT.patches[0], 0, blocks[0], HOW)
    assert len(detected.table) == 2 and (detected.table["x"] < 101).all()
    assert set(np.unique(detected.segmentation)) == {patch_sources.ELSEWHERE, 0, 1, 2}
    assert (detected.segmentation[:, 104:] == patch_sources.ELSEWHERE).any()


def test_too_few_stars_for_an_aperture_correction_have_magnitudes_without_one(blocks):
    table = patch_sources._detected(LAYOUT.patches[0], 0, blocks[0], HOW).table
    assert np.isfinite(table["mag_small"]).all()
