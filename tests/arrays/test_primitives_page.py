"""What docs/primitives.md says runs as it stands there, and gives what NumPy gives."""

import nibabel
import numpy as np
import pytest
from support import launch, pages_of_code

PAGE = launch.REPOSITORY / "docs" / "primitives.md"

#: What the checks compare with: the series of the page, by NumPy.
BEFORE = """
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter, median_filter

X = np.asarray(nibabel.load("dwi.nii.gz").dataobj)
FRAMES = [np.load(path) for path in sorted(Path("frames").glob("*.npy"))]


def equal(array, expected):
    found = array if isinstance(array, np.ndarray | np.generic) else array.compute()
    expected = np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype, (found.shape, found.dtype)
    assert np.array_equal(found, expected, equal_nan=True), np.abs(found - expected).max()


def close(array, expected):
    found = array if isinstance(array, np.ndarray | np.generic) else array.compute()
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)
"""

#: By section: what must hold after its lines.
CHECKS = {
    "Lazy arrays": """
equal(np.asarray(nibabel.load("mean.nii.gz").dataobj), X.mean(axis=-1, dtype="f8").astype("f4"))
equal(np.asarray(nibabel.load("results/first.nii.gz").dataobj), X[..., 0])
assert (nibabel.load("mean.nii.gz").affine == nibabel.load("dwi.nii.gz").affine).all()
""",
    "Functions on blocks": """
brain, level, slope, both = mi.compute(brain, level, slope, both)
inside = gaussian_filter(X[..., 0], 1) > 400
equal(brain, inside)
assert inside.any() and not inside.all()
expected = np.polyfit(np.arange(6), X[inside].T, 1)
assert np.allclose(slope[inside], expected[0], atol=1e-3) and not slope[~inside].any()
assert np.allclose(level[inside], expected[1], atol=1e-3)
close(both, np.stack([X.mean(axis=-1), X.std(axis=-1)], axis=-1))
""",
    "Blocks with their neighbours": """
volumes, slabs = mi.compute(volumes, slabs)
equal(volumes, np.stack([median_filter(one, 3) for one in np.moveaxis(X, -1, 0)], axis=-1))
close(slabs, gaussian_filter(X, (1, 1, 1, 0)))
""",
    "Generalised ufuncs": """
w = np.arange(1.0, 7.0)
close(result, (X * w).sum(axis=-1) / w.sum())
""",
    "Expressions": """
assert flat.axes == ("c", "column", "row", "t") and volumes.axes[0] == "v"
part, some, odd, ratio, bright, clean, logs = mi.compute(part, some, odd, ratio, bright, clean, logs)
small, wide, turned, volumes, longer, flat = mi.compute(small, wide, turned, volumes, longer, flat)
equal(part, X[2:10, ::-1, 3])
equal(some, X[..., [4, 0, 2]])
equal(odd, X[..., 1::2])
with np.errstate(all="ignore"):
    equal(ratio, X / X[..., :1])
between = (X > 500) & (X < 900)
equal(bright, between)
equal(clean, np.where(between, X, 0).astype("f4"))
equal(logs, np.log(X + 1))
equal(small, X.reshape(6, 2, 5, 2, 8, 6).mean(axis=(1, 3), dtype="f8").astype("f4"))
equal(wide, np.pad(X, ((1, 1), (0, 0), (0, 0), (0, 0)), "edge"))
equal(turned, X.transpose())
equal(volumes, np.stack([X[..., 0], X[..., 3]]))
equal(longer, np.concatenate([X, X], axis=-1))
equal(flat, X[:, :, 0][None])
""",
    "Reductions": """
assert profile.axes == ("z", "t") and largest.axes == ()
over_time, profile, largest, where, counts = mi.compute(over_time, profile, largest, where, counts)
close(over_time, X.std(axis=-1))
equal(profile, X.sum(axis=(0, 1)))
assert largest == X.max()
equal(where, X.argmax(axis=-1))
equal(counts, np.histogram(X, 32, (0, 1000))[0])
assert (edges == np.histogram(X, 32, (0, 1000))[1]).all()
""",
    "Results that later functions use": """
result, bright = mi.compute(result, bright)
close(result, (X - X.mean()) / X.std())
equal(bright, X - X.mean(dtype="f8").astype("f4") > np.median(X[..., 0]))
""",
    "NumPy and back": """
equal(first, X[..., 0])
equal(last, X[..., -1])
from mpi4py import MPI
assert (on_first_rank is None) == (MPI.COMM_WORLD.rank > 0)
assert labelled.dims == ("x", "y", "z")
equal(labelled.to_numpy(), X.mean(axis=-1, dtype="f8").astype("f4"))
""",
    "A reader of yours": """
equal(frame, np.fromfile("frame.raw", "u2").reshape(300, 260))
""",
    "Items": """
kept = [frame for frame in FRAMES if frame.mean() > 100]
assert len(kept) == 3
found = frames.compute()
assert [record["name"] for record in found] == ["frame-0.npy", "frame-2.npy", "frame-3.npy"]
assert all((record["values"] == frame).all() for record, frame in zip(found, kept, strict=True))
tiles = {row: [frame[row : row + 50] for frame in FRAMES] for row in (0, 50)}
assert medians.keys() == [0, 50]
for key, values in medians.keyed():
    equal(values, np.median(tiles[key], axis=0))
    equal(np.load(f"results/tiles/tile-{key:04d}.npy"), np.median(tiles[key], axis=0))
sums = [sum((float(tile.mean()) for tile in tiles[row]), 0.0) for row in (0, 50)]
assert np.allclose(means.compute(), sums)
equal(stack, X.max(axis=2).transpose(2, 0, 1))
assert stack.axes == ("t", "x", "y")
""",
    "Tables": """
import pyarrow.parquet
found_at = [np.argwhere(frame > 900).tolist() for frame in FRAMES]
places = [(f"frame-{n}.npy", *at) for n, every in enumerate(found_at) for at in every]
rows = pyarrow.parquet.read_table("sources.parquet").to_pylist()
assert [(row["frame"], row["y"], row["x"]) for row in rows] == places
most = bright.compute()
assert len(most) == (FRAMES[2] > 950).sum() and np.allclose(most["mag"], -2.5 * np.log10(most["flux"]))
assert again.compute().colnames == ["frame", "brightest"]
assert all(row["brightest"] == FRAMES[2].max() for row in rows) and rows[0]["number"] == len(rows) > 3
""",
    "Programs of others": "",
    "Loops": """
now = X[..., 0]
for passes in range(1, 11):
    before, now = now, gaussian_filter(now, 1)
    if np.abs(now - before).max() < 20:
        break
assert passes > 2
smoother, same = mi.compute(smoother, same)
close(smoother, now)
close(same, now)
""",
    "Plans, sessions and resuming": """
equal(np.asarray(nibabel.load("mean-2.nii.gz").dataobj), X.mean(axis=-1, dtype="f8").astype("f4"))
""",
    "When something goes wrong": "",
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Run all lines of the page on two ranks."""
    folder, random = tmp_path_factory.mktemp("primitives"), np.random.default_rng(5)
    x, y, z, t = np.ogrid[:12, :10, :8, :6]
    head = 900 * ((x - 6) ** 2 + (y - 5) ** 2 + (z - 4) ** 2 < 14) * (1 - 0.05 * t)
    series = (head + random.integers(0, 100, (12, 10, 8, 6))).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(series, np.diag([2, 2, 3, 1])), folder / "dwi.nii.gz")
    random.integers(0, 60_000, (300, 260), "uint16").tofile(folder / "frame.raw")
    (folder / "frames").mkdir()
    for number, level in enumerate((900, 50, 1000, 800)):
        frame = random.integers(0, level, (100, 60)).astype(np.float32)
        np.save(folder / "frames" / f"frame-{number}.npy", frame)
    return pages_of_code.run(PAGE, folder, CHECKS, before=BEFORE)


@pytest.mark.parametrize("heading", CHECKS)
def test_the_lines_of_a_section_give_what_they_say(outcome, heading):
    if outcome[heading]:
        pytest.fail(outcome[heading], pytrace=False)


def test_every_section_with_code_is_run():
    found = {heading for heading, code in pages_of_code.sections(PAGE).items() if code and heading}
    assert found == set(CHECKS)
