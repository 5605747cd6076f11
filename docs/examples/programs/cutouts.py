"""Stamps around positions in all frames: the median stamp and the light curve of each source."""

import numpy as np

import mpiimg as mi

positions, half = np.loadtxt("positions.txt", ndmin=2).astype(int), 3


def load(path):
    return {"image": np.load(path), "frame": path.stem}


def cut(frame):
    for source, (y, x) in enumerate(positions):
        stamp = frame["image"][max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
        if stamp.size:
            yield source, {"stamp": stamp, "frame": frame["frame"]}


def light(records, key):
    flux = [one["stamp"].sum(dtype="f8") for one in records]
    return {"source": key, "frame": [one["frame"] for one in records], "flux": flux}


def save(folder, stamp, key):
    np.save(folder / f"source-{key}.npy", stamp)


sources = mi.items("frames/*.npy", load).flat_map(cut).group_by_key()
stamps = sources.map(lambda records: np.median([one["stamp"] for one in records], axis=0))
mi.write({"stamps/": stamps.files(save), "light.parquet": sources.map(light).table()}, "results")
