"""Neuroscience on TensorFlow, in its own primitives; with --function dipy does the work, by its escape."""

import neuro_kernels as kernels
import numpy as np
import tensorflow as tf
from program import run

RADIUS, PASSES, BINS = 4, 4, 256
PATCH = 1
MIN_SIGNAL = 1e-4
VOXELS_AT_ONCE = 10_000


@tf.function
def median(volume):
    """Filter by the median of a cube, plane by plane, since TensorFlow can only sort all its values."""
    side = 2 * RADIUS + 1
    padded = tf.pad(volume, [[RADIUS, RADIUS]] * 3, "SYMMETRIC")

    def plane(x):
        slab = padded[x : x + side]
        cubes = tf.image.extract_patches(
            tf.transpose(slab, (1, 2, 0))[None], [1, side, side, 1], [1] * 4, [1] * 4, "VALID"
        )
        return tf.math.top_k(cubes[0], side**3 // 2 + 1).values[..., -1]

    return tf.map_fn(plane, tf.range(tf.shape(volume)[0]), fn_output_signature=tf.float32)


def otsu(volume):
    """Return the threshold that separates two classes best, from a histogram."""
    low, high = tf.reduce_min(volume), tf.reduce_max(volume)
    counts = tf.cast(tf.histogram_fixed_width(volume, [low, high], BINS), tf.float64)
    centres = tf.cast(low, tf.float64) + (tf.range(BINS, dtype=tf.float64) + 0.5) / BINS * tf.cast(
        high - low, tf.float64
    )
    below, above = tf.cumsum(counts)[:-1], tf.cumsum(counts, reverse=True)[1:]
    mean_below = tf.cumsum(counts * centres)[:-1] / below
    mean_above = tf.cumsum(counts * centres, reverse=True)[1:] / above
    return tf.cast(centres[tf.argmax(below * above * (mean_below - mean_above) ** 2)], tf.float32)


@tf.function
def brain_mask(mean):
    for _ in range(PASSES):
        mean = median(mean)
    return mean > otsu(mean)


def sums_of_three(values):
    """Sum over cubes of three voxels a side; a convolution of one channel would take twenty times as long."""
    values = values[2:] + values[1:-1] + values[:-2]
    values = values[:, 2:] + values[:, 1:-1] + values[:, :-2]
    return values[:, :, 2:] + values[:, :, 1:-1] + values[:, :, :-2]


@tf.function
def denoise(volume, mask, sigma, radius):
    """Non-local means: for each offset the squared differences, summed over patches."""
    shape, margin, reach = tf.shape(volume), radius, radius - PATCH
    padded = tf.pad(volume, [[margin, margin]] * 3, "REFLECT")
    near = padded[reach:-reach, reach:-reach, reach:-reach]
    weights, squares = tf.zeros_like(volume), tf.zeros_like(volume)
    side = 2 * reach + 1
    for offset in tf.range(side**3):
        i, j, k = offset // side**2, offset // side % side, offset % side
        far = tf.slice(padded, [i, j, k], shape + 2 * PATCH)
        weight = tf.exp(-sums_of_three((near - far) ** 2) / 27 / (np.sqrt(2) * sigma**2))
        weights += weight
        squares += weight * far[1:-1, 1:-1, 1:-1] ** 2
    return tf.where(mask, tf.sqrt(tf.maximum(squares / weights - 2 * sigma**2, 0)), 0)


def denoise_by_function(volume, mask, sigma, radius):
    """The same by dipy, through TensorFlow's escape for Python functions."""
    return tf.numpy_function(kernels.denoise, [volume, mask, sigma, radius], tf.float32)


@tf.function
def fit(signal, design):
    """Weighted least squares of the logarithm of (voxels, volumes); return FA and MD."""
    logarithm = tf.math.log(tf.maximum(tf.cast(signal, tf.float64), MIN_SIGNAL))
    ordinary = tf.matmul(logarithm, tf.linalg.pinv(design), transpose_b=True)
    weights = tf.exp(2 * tf.matmul(ordinary, design, transpose_b=True))
    normal = tf.einsum("nv,vi,vj->nij", weights, design, design)
    right = tf.einsum("nv,vi,nv->ni", weights, design, logarithm)
    xx, xy, yy, xz, yz, zz, _ = tf.unstack(tf.linalg.solve(normal, right[..., None])[..., 0], axis=-1)
    tensor = tf.stack([tf.stack(row, -1) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))], -1)
    smallest = 1e-6 / -tf.reduce_min(design)
    values = tf.maximum(tf.linalg.eigvalsh(tensor), smallest)
    mean = tf.reduce_mean(values, axis=-1)
    away = tf.reduce_sum((values - mean[:, None]) ** 2, axis=-1)
    anisotropy = tf.sqrt(1.5 * away / tf.reduce_sum(values**2, axis=-1))
    return tf.cast(tf.stack([anisotropy, mean], axis=-1), tf.float32)


def pipeline(options, clock):
    gradients, affine = kernels.read_gradients(options.source), kernels.read_affine(options.source)
    tf.config.threading.set_inter_op_parallelism_threads(options.workers)
    tf.config.threading.set_intra_op_parallelism_threads(options.workers)
    clock.mark("start-up")
    # The volume comes first, since TensorFlow takes slices of the first axis; it filters by no other.
    data = tf.constant(np.moveaxis(kernels.read_data(options.source), -1, 0))
    clock.mark("ingest")
    b0 = tf.gather(data, np.flatnonzero(gradients.b0s_mask))
    clock.mark("filter")
    mean = tf.cast(tf.reduce_mean(tf.cast(b0, tf.float64), axis=0), tf.float32)
    clock.mark("mean")
    mask = tf.numpy_function(kernels.brain_mask, [mean], tf.bool) if options.function else brain_mask(mean)
    clock.mark("mask")
    method = denoise_by_function if options.function else denoise
    sigma = tf.constant(options.sigma, tf.float32)
    volumes = tf.data.Dataset.from_tensor_slices(data).map(
        lambda volume: method(volume, mask, sigma, options.block_radius), num_parallel_calls=options.workers
    )
    denoised = tf.stack(list(volumes))
    clock.mark("denoise")
    signal = tf.transpose(tf.boolean_mask(denoised, mask, axis=1))
    clock.mark("regroup")
    if options.function:
        maps = tf.numpy_function(lambda voxels: kernels.fit(voxels, gradients), [signal], tf.float32)
    else:
        design = tf.constant(kernels.design_of(gradients))
        maps = tf.concat([fit(part, design) for part in tf.split(signal, parts_of(len(signal)))], axis=0)
    clock.mark("fit")
    kernels.write_maps(options.out, affine, mask.numpy(), maps.numpy())
    clock.mark("write")


def parts_of(count):
    """Return the sizes of parts that are fitted at once."""
    return [min(VOXELS_AT_ONCE, count - first) for first in range(0, count, VOXELS_AT_ONCE)]


if __name__ == "__main__":
    run(pipeline)
