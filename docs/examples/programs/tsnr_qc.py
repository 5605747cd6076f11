"""Temporal signal-to-noise of a series, and a table of what may have moved: dwi.nii.gz to results/."""

import numpy as np

import mpiimg as mi

series = mi.read("dwi.nii.gz").astype("float32")
mean, spread = series.mean("t"), series.std("t")
tsnr = mi.where(spread > 0, mean / spread, 0)
brain = mean > mean.mean()


def quality(volume, key, *, mean, brain):
    x, y, z = (np.indices(volume.shape) * volume).reshape(3, -1).sum(axis=1) / volume.sum()
    alike = np.corrcoef(volume[brain], mean[brain])[0, 1]
    return {"t": key, "signal": volume[brain].mean(), "correlation": alike, "x": x, "y": y, "z": z}


table = series.to_items("t").map(quality, mean=mean, brain=brain).table(units={"x": "pixel"})
mi.write({"tsnr.nii.gz": tsnr, "brain.nii.gz": brain, "quality.ecsv": table}, "results")
