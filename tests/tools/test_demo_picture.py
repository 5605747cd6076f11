"""The picture of a run: every panel shows something, whatever the size and orientation."""

import nibabel
import numpy as np
import pytest

from mpiimg.demo import picture as demo_picture
from mpiimg.demo.picture import draw_subject
from mpiimg.simulate.neuro import SimulatedSubject

matplotlib_image = pytest.importorskip("matplotlib.image")


def write_run(folder, shape=(24, 28, 20), affine=None, residual=False):
    """Write a run whose derivatives are the truth; return its paths."""
    subject = SimulatedSubject(shape, 12)
    affine = subject.affine if affine is None else affine
    truth = subject.truth(0, shape[2])
    run = np.stack([subject.volume(v, 0, shape[2]) for v in range(12)])
    denoised = np.where(truth["mask"], run * np.float32(0.9), 0)
    colour = np.abs(np.stack([truth["tensor"][i] for i in (0, 2, 5)])) * 500
    arrays = {
        "dwi": run,
        "mask": truth["mask"],
        "denoised": denoised,
        "fa": truth["fa"],
        "rgb": colour.astype(np.float32),
    }
    if residual:
        arrays["residual"] = run - denoised
    paths = {"bval": folder / "dwi.bval"}
    np.savetxt(paths["bval"], subject.gradients[0][None], fmt="%g")
    for name, array in arrays.items():
        paths[name] = folder / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array.T, affine), paths[name])
    return paths


def panels(picture):
    """Cut a picture into its two rows of four panels, captions included."""
    body = picture[round(demo_picture.HEADING * demo_picture.DPI) :]
    return [panel for row in np.array_split(body, 2) for panel in np.array_split(row, 4, axis=1)]


@pytest.mark.parametrize("shape", [(24, 28, 20), (10, 10, 10), (6, 10, 10), (9, 8, 1)])
@pytest.mark.parametrize("residual", [False, True])
def test_every_panel_shows_something(tmp_path, shape, residual):
    draw_subject(write_run(tmp_path, shape, residual=residual), tmp_path / "run.png", "A subject")
    picture = matplotlib_image.imread(tmp_path / "run.png")[..., :3]
    height, width, _ = picture.shape
    assert width == 1400 and 400 < height < 1500
    for panel in panels(picture):
        assert panel.std() > 0.05
    assert (picture[:, 0] == 1).all() and (picture[:, -1] == 1).all()  # on white


def test_colours_only_where_they_mean_something(tmp_path):
    draw_subject(write_run(tmp_path), tmp_path / "run.png", "A subject")
    picture = matplotlib_image.imread(tmp_path / "run.png")[..., :3]
    coloured = [(np.ptp(panel, axis=-1) > 0.1).mean() > 0.005 for panel in panels(picture)]
    assert coloured == [False, True, False, False, False, False, True, True]


def test_the_mask_may_be_empty(tmp_path):
    paths = write_run(tmp_path)
    image = nibabel.load(paths["mask"])
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), paths["mask"])
    draw_subject(paths, tmp_path / "run.png", "No brain")
    assert (tmp_path / "run.png").stat().st_size > 0


def reoriented(image, codes):
    """Return the image with its voxel axes in another order and sense, the same place in the scanner."""
    here = nibabel.orientations.io_orientation(image.affine)
    there = nibabel.orientations.axcodes2ornt(codes)
    return image.as_reoriented(nibabel.orientations.ornt_transform(here, there))


@pytest.mark.parametrize("codes", ["LAS", "RPS", "PLS", "ARS", "LPS"])
def test_right_is_to_the_right_in_any_orientation(codes):
    values = np.arange(7 * 8 * 5, dtype=np.int16).reshape(7, 8, 5)
    image = nibabel.Nifti1Image(values, np.diag([2.0, 3.0, 2.0, 1.0]))
    mask = np.zeros(values.shape, np.uint8)
    mask[1:6, 2:7, 1:4] = 1
    expected = demo_picture._choose_view(image, mask > 0)
    turned = reoriented(image, codes)
    turned_mask = reoriented(nibabel.Nifti1Image(mask, image.affine), codes)
    view = demo_picture._choose_view(turned, np.asarray(turned_mask.dataobj) > 0)
    np.testing.assert_array_equal(view.cut(turned), expected.cut(image))
    assert view.letters == ("L", "R", "P", "A") and view.aspect == pytest.approx(1.5)


def test_a_short_bval_is_refused(tmp_path):
    paths = write_run(tmp_path)
    np.savetxt(paths["bval"], [[0, 1000]])
    with pytest.raises(ValueError, match="2 values for 12 volumes"):
        draw_subject(paths, tmp_path / "run.png", "A subject")
