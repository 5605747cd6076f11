"""Obvious loop versions of every kernel: slow, short, and easy to believe."""

import decimal
import math

import numpy as np


def tensor_fit(signal, design, method="WLS", min_signal=1e-4, digits=50):
    """Return the seven tensor parameters of one voxel, worked out to `digits` decimal digits.

    Least squares of the log-signal by normal equations: "OLS" without weights; "WLS" once more with the
    squared signals that the first fit predicts as weights; "IWLS" as MRtrix3's dwi2tensor, with the squared
    signals themselves, then twice with those that the fit before predicts.
    """
    with decimal.localcontext() as context:
        context.prec = digits
        rows = [[decimal.Decimal(float(x)) for x in row] for row in design]
        logs = [decimal.Decimal(max(float(s), min_signal)).ln() for s in signal]
        fitted = logs if method == "IWLS" else [decimal.Decimal(0)] * len(rows)
        for _ in range({"OLS": 1, "WLS": 2, "IWLS": 3}[method]):
            beta = _least_squares(rows, logs, [(2 * value).exp() for value in fitted])
            fitted = [sum(x * b for x, b in zip(row, beta, strict=True)) for row in rows]
        return [float(b) for b in beta]


def _least_squares(rows, values, weights):
    """Solve weighted normal equations by Gauss-Jordan elimination."""
    m = len(rows[0])
    extended = [[*row, value] for row, value in zip(rows, values, strict=True)]
    a = [
        [sum(w * row[i] * row[j] for w, row in zip(weights, extended, strict=True)) for j in range(m + 1)]
        for i in range(m)
    ]
    for i in range(m):
        a[i] = [x / a[i][i] for x in a[i]]
        for k in range(m):
            if k != i:
                a[k] = [x - a[k][i] * y for x, y in zip(a[k], a[i], strict=True)]
    return [row[m] for row in a]


def tensor_maps(parameters, min_diffusivity):
    """Return fa, md, ad, rd, eigenvalues and v1 (up to sign) of one voxel, by numpy's eigh."""
    xx, xy, yy, xz, yz, zz = parameters[:6]
    values, vectors = np.linalg.eigh(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
    l3, l2, l1 = np.maximum(values, min_diffusivity)
    spread = (l1 - l2) ** 2 + (l2 - l3) ** 2 + (l3 - l1) ** 2
    fa = np.sqrt(spread / 2 / (l1**2 + l2**2 + l3**2))
    return fa, (l1 + l2 + l3) / 3, l1, (l2 + l3) / 2, (l1, l2, l3), vectors[:, 2]


def tensor_residual(signal, design, parameters):
    """Return the root mean square of signal minus exp(design parameters), of one voxel."""
    squares = 0.0
    for value, row in zip(signal, design, strict=True):
        squares += (value - np.exp(sum(x * p for x, p in zip(row, parameters, strict=True)))) ** 2
    return np.sqrt(squares / len(signal))


def diffusion_signal(s0, tensor, bval, bvec):
    """S0 exp(-b g'Dg) voxel by voxel; `tensor` (6, nz, ny, nx) as Dxx, Dxy, Dyy, Dxz, Dyz, Dzz."""
    signal = np.empty(s0.shape)
    for index in np.ndindex(s0.shape):
        xx, xy, yy, xz, yz, zz = (float(element[index]) for element in tensor)
        matrix = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        signal[index] = s0[index] * np.exp(-bval * (bvec @ matrix @ bvec))
    return signal


def bspline_field(lattice, spacing, x, y, z):
    """A cubic B-spline at one point: the sum over all knots of coefficient times three hat-like bumps."""
    from scipy.interpolate import BSpline

    bump = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    total = 0.0
    for index, coefficient in np.ndenumerate(lattice):
        weights = [
            np.nan_to_num(bump((position + 1) / spacing + 1 - knot))
            for position, knot in zip((z, y, x), index, strict=True)
        ]
        total += coefficient * np.prod(weights)
    return total


def median_filter(volume, radius):
    """Return, for each voxel, the middle element of the sorted cube around it, edges mirrored."""
    padded = np.pad(volume, radius, mode="symmetric")
    result = np.empty_like(volume)
    window = 2 * radius + 1
    for z, y, x in np.ndindex(volume.shape):
        cube = padded[z : z + window, y : y + window, x : x + window]
        result[z, y, x] = sorted(cube.ravel())[window**3 // 2]
    return result


def otsu(image, bins=256):
    """Return the bin edge that splits a float32 image with the largest variance between the classes."""
    counts, edges = np.histogram(image, bins)
    best, threshold = -1.0, edges[0]
    for split in range(1, bins):
        below, above = counts[:split], counts[split:]
        if below.sum() == 0 or above.sum() == 0:
            continue
        mean_below = (below * edges[1 : split + 1]).sum() / below.sum()
        mean_above = (above * edges[split + 1 :]).sum() / above.sum()
        variance = float(below.sum()) * float(above.sum()) * (mean_below - mean_above) ** 2
        if variance > best:
            best, threshold = variance, edges[split - 1]
    return threshold


def nonlocal_means(volume, sigma, mask, patch_radius=1, block_radius=5, rician=True):
    """Voxelwise non-local means of a whole (z, y, x) volume, noise level by slice: one pair at a time."""
    padded = np.pad(np.asarray(volume, float), block_radius, mode="reflect")
    level = np.pad(np.asarray(sigma, float), block_radius, mode="reflect")
    reach = block_radius - patch_radius
    out = np.zeros(volume.shape)

    def patch(centre):
        return padded[tuple(slice(c - patch_radius, c + patch_radius + 1) for c in centre)]

    for voxel in np.argwhere(mask):
        centre = voxel + block_radius
        weights = total = 0.0
        for index in np.ndindex(*(2 * reach + 1,) * 3):
            moved = centre + np.array(index) - reach
            s = level[moved[0] - patch_radius : moved[0] + patch_radius + 1].mean()
            distance = ((patch(centre) - patch(moved)) ** 2).mean()
            weight = np.exp(-distance / (np.sqrt(2.0) * s**2))
            weights += weight
            total += weight * padded[tuple(moved)] ** 2
        bias = 2.0 * level[centre[0]] ** 2 if rician else 0.0
        out[tuple(voxel)] = np.sqrt(max(total / weights - bias, 0.0))
    return out


def coadd(images, variances, masks, weights, planes, sigma=3.0, passes=2):
    """Clip and average pixel by pixel: image, variance, mask, number of inputs."""
    shape = images.shape[1:]
    image, variance = np.full(shape, np.nan), np.full(shape, np.inf)
    mask, number = np.zeros(shape, int), np.zeros(shape, int)
    for at in np.ndindex(shape):
        stack = zip(images, variances, masks, strict=True)
        pixels = [(float(i[at]), float(v[at]), int(m[at])) for i, v, m in stack]
        inputs = [
            (value, var, bits, w)
            for (value, var, bits), w in zip(pixels, weights, strict=True)
            if np.isfinite(value) and np.isfinite(var) and var >= 0 and not bits & planes.excluded and w > 0
        ]
        left = inputs
        for _ in range(passes):
            values = [value for value, *_ in left]
            mean = sum(values) / len(values) if values else 0.0
            reach = sigma * np.sqrt(sum((mean - v) * (mean - v) for v in values) / max(len(values), 1))
            left = [one for one in left if mean - reach <= one[0] <= mean + reach]
        total = sum(w for *_, w in left)
        if left:
            image[at] = sum(w * value for value, _, _, w in left) / total
            variance[at] = sum(w * w * var for _, var, _, w in left) / total**2
        number[at] = len(left)
        for _, _, bits, _ in left:
            mask[at] |= bits
        mask[at] |= planes.clipped * (len(left) < len(inputs)) | planes.no_data * (not left)
        seen = [
            bits & planes.saturated
            for value, _, bits in pixels
            if not bits & planes.no_data and (bits & planes.saturated or np.isfinite(value))
        ]
        mask[at] |= planes.saturated * (bool(seen) and all(seen) and not left)
    return image, variance, mask, number


def lanczos(d):
    """The Lanczos-3 kernel at distance `d`."""
    return np.sinc(d) * np.sinc(d / 3) if abs(d) < 3 else 0.0


def warp(image, variance, mask, x, y, area, no_data, shifts=4096, stretch=1.0):
    """Lanczos-3 at source coordinates x and y of each output pixel, `area` its Jacobian; float64 sums.

    Image, variance, mask, and the variance per pixel of sums over many pixels.
    """
    ny, nx = image.shape
    half = math.ceil(3 * stretch)
    taps = np.arange(1 - half, half + 1)
    out = (
        np.full(x.shape, np.nan),
        np.full(x.shape, np.inf),
        np.full(x.shape, no_data),
        np.full(x.shape, np.inf),
    )
    for place in np.ndindex(x.shape):
        x0, y0 = int(np.floor(x[place])), int(np.floor(y[place]))
        if x0 < half - 1 or y0 < half - 1 or x0 + half >= nx or y0 + half >= ny:
            continue
        shift_x, shift_y = (np.floor((v[place] % 1.0) * shifts + 0.5) / shifts for v in (x, y))
        along = np.array([lanczos((shift_x - tap) / stretch) for tap in taps])
        down = np.array([lanczos((shift_y - tap) / stretch) for tap in taps])
        weights = np.outer(down / down.sum(), along / along.sum())
        box = slice(y0 - half + 1, y0 + half + 1), slice(x0 - half + 1, x0 + half + 1)
        value = np.sum(weights * image[box]) * area[place]
        noise = np.sum(weights**2 * variance[box])
        out[2][place] = np.bitwise_or.reduce(mask[box], axis=None)
        if np.isfinite(value) and np.isfinite(noise):
            out[0][place], out[1][place] = value, noise * area[place] ** 2
            out[3][place] = noise / np.sum(weights**2) * area[place]
        else:
            out[2][place] |= no_data
    return out


def area_sums(image, variance, mask, places, excluded, no_data):
    """Light by shared area: each output pixel is a quadrilateral, clipped by the sides of each source pixel.

    `places` maps x and y of the output to those of the source; the function that is returned takes a row and
    a column of the output, and gives what :func:`warp` gives of a pixel.
    """
    sides = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))

    def gather(y, x):
        corners = [places(x + right, y + up) for right, up in sides]
        return _area_sum(image, variance, mask, corners, excluded, no_data)

    return gather


def _area_sum(image, variance, mask, quadrilateral, excluded, no_data):
    shares, bits = [], 0
    for y, x in np.ndindex(image.shape):
        share = polygon_area(clipped(quadrilateral, x - 0.5, x + 0.5, y - 0.5, y + 0.5))
        sound = np.isfinite(image[y, x]) and np.isfinite(variance[y, x]) and not mask[y, x] & excluded
        if share > 0 and sound:
            shares.append((share, image[y, x], variance[y, x]))
            bits |= mask[y, x]
    whole = polygon_area(quadrilateral)
    good = sum(share for share, _, _ in shares)
    if good < 0.5 * whole:
        return np.nan, np.inf, bits | no_data, np.inf
    share, value, noise = np.array(shares).T
    factor = whole / good
    return (
        np.sum(share * value) * factor,
        np.sum(share**2 * noise) * factor**2,
        bits,
        np.sum(share * noise) * factor**2,
    )


def polygon_area(polygon):
    """The area of a polygon of (x, y)."""
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2


def clipped(polygon, left, right, low, high):
    """A convex polygon of (x, y) cut at four sides, one after the other."""
    for axis, limit, sign in ((0, left, 1), (0, right, -1), (1, low, 1), (1, high, -1)):
        kept = []
        for one, following in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            here, there = sign * (one[axis] - limit), sign * (following[axis] - limit)
            if here >= 0:
                kept.append(one)
            if here * there < 0:
                share = here / (here - there)
                kept.append(tuple(a + share * (b - a) for a, b in zip(one, following, strict=True)))
        polygon = kept
    return polygon


def interpolate_bad(image, bad):
    """Linear over the shorter gap of bad pixels, row before column, else the nearest good end of a gap.

    What has no good pixel in its row and column is done from the others, if there are any.
    """
    out = np.where(bad, np.nan, image)
    for y, x in np.argwhere(bad):
        gaps, ends = [], []
        for dy, dx in ((0, 1), (1, 0)):
            before = _first_good(image, bad, y, x, -dy, -dx)
            after = _first_good(image, bad, y, x, dy, dx)
            ends += [end for end in (before, after) if end]
            if before and after:
                (n0, v0), (n1, v1) = before, after
                gaps.append((n0 + n1, v0 + (v1 - v0) * n0 / (n0 + n1)))
        if gaps or ends:
            out[y, x] = min(gaps or ends, key=lambda choice: choice[0])[1]
    left = np.isnan(out)
    return interpolate_bad(out, left) if 0 < left.sum() < left.size else out


def _first_good(image, bad, y, x, dy, dx):
    """Return steps to, and value of, the first good pixel on the way, or None."""
    steps = 0
    while y in range(image.shape[0]) and x in range(image.shape[1]):
        if not bad[y, x]:
            return steps, image[y, x]
        y, x, steps = y + dy, x + dx, steps + 1
    return None


def aperture_sum(image, variance, seen, x, y, radius, parts=25):
    """Flux and error in a circle, each pixel cut into parts x parts; unseen pixels count as the mean."""
    flux = noise = area = used = 0.0
    reach = int(np.ceil(radius)) + 1
    offsets = (np.arange(parts) + 0.5) / parts - 0.5
    for row in range(round(y) - reach, round(y) + reach + 1):
        for column in range(round(x) - reach, round(x) + reach + 1):
            off = np.hypot((row + offsets - y)[:, None], (column + offsets - x)[None])
            share = np.mean(off < radius)
            area += share
            if seen[row, column]:
                used += share
                flux += share * image[row, column]
                noise += share * variance[row, column]
    return flux * area / used, np.sqrt(noise * area / used)


def primary_at_seams(patches, radius):
    """Which sources stay: in patch order, one is dropped when an earlier patch's is within the radius."""
    kept = []
    for number, places in enumerate(patches):
        flags = []
        for place in places:
            near = [
                True
                for other in range(number)
                for there, stays in zip(patches[other], kept[other], strict=True)
                if stays and np.hypot(*(there - place)) <= radius
            ]
            flags.append(not near)
        kept.append(flags)
    return kept


def separable_median(image, size):
    """Medians of rows, then of columns of those; pixels nearer to the edge than half the size stay."""
    reach = size // 2
    rows, out = image.copy(), image.copy()
    for y, x in np.ndindex(image.shape):
        if reach <= x < image.shape[1] - reach:
            rows[y, x] = np.median(image[y, x - reach : x + reach + 1])
    for y, x in np.ndindex(image.shape):
        if reach <= y < image.shape[0] - reach and reach <= x < image.shape[1] - reach:
            out[y, x] = np.median(rows[y - reach : y + reach + 1, x])
    return out


def grown(mask, footprint):
    """Pixels with a set pixel under the footprint; nearer to the edge than its reach they stay."""
    reach = len(footprint) // 2
    out = mask.copy()
    for y in range(reach, mask.shape[0] - reach):
        for x in range(reach, mask.shape[1] - reach):
            around = mask[y - reach : y + reach + 1, x - reach : x + reach + 1]
            out[y, x] = np.any(around & footprint)
    return out


def cosmic_rays(image, mask, readnoise, satlevel, sigclip=4.5, sigfrac=0.3, objlim=5.0, iterations=4):
    """L.A.Cosmic with separable medians, step by step in float64; returns what is struck, and the repair."""
    square = np.ones((3, 3), bool)
    disc = np.add.outer(abs(np.arange(-2, 3)), abs(np.arange(-2, 3))) < 4
    clean = image.astype(float)
    stars = (clean >= satlevel) & (separable_median(clean, 7) > satlevel / 10)
    good = ~(grown(mask, square) | grown(grown(stars, disc), disc))
    level = np.sort(clean[good])[(good.sum() - 1) // 2]
    struck = np.zeros(image.shape, bool)
    for _ in range(iterations):
        fourfold = np.pad(clean.repeat(2, 0).repeat(2, 1), 1)
        neighbours = fourfold[:-2, 1:-1] + fourfold[2:, 1:-1] + fourfold[1:-1, :-2] + fourfold[1:-1, 2:]
        quarters = np.maximum(4 * fourfold[1:-1, 1:-1] - neighbours, 0)
        laplacian = quarters.reshape(len(clean), 2, -1, 2).mean(axis=(1, 3))
        noise = np.sqrt(np.maximum(separable_median(clean + readnoise**2, 7), 1e-5))
        ratio = laplacian / (2 * noise)
        ratio -= separable_median(ratio, 7)
        fine = separable_median(clean, 5)
        structure = np.maximum((fine - separable_median(fine, 9)) / noise, 0.01)
        core = good & (ratio > sigclip) & (ratio / structure > objlim)
        core = good & (ratio > sigclip) & grown(core, square)
        found = good & (ratio > sigfrac * sigclip) & grown(core, square)
        if not found.any():
            break
        struck |= found
        usable = good & ~struck
        for y, x in np.argwhere(struck[2:-2, 2:-2]) + 2:
            around = (slice(y - 2, y + 3), slice(x - 2, x + 3))
            values = np.sort(clean[around][usable[around]])
            clean[y, x] = values[(len(values) - 1) // 2] if len(values) else level
    return struck, clean


def robust_mean(values, errors, deviations, clip):
    """Return the weighted mean of values clipped about their median, its error, and how many are left."""
    weights = 1 / errors**2
    kept = np.ones(len(values), dtype=bool)
    centre = np.median(values) if len(values) else np.nan
    for _ in range(10):
        if not kept.any():
            return np.nan, np.nan, 0
        scatter = np.median(np.abs(values[kept] - centre))
        inside = np.abs(values - centre) <= np.maximum(deviations * scatter, clip * errors)
        centre = np.average(values[inside], weights=weights[inside])
        if np.array_equal(inside, kept):
            break
        kept = inside
    excess = np.sum(weights[kept] * (values[kept] - centre) ** 2) / max(kept.sum() - 1, 1)
    return centre, np.sqrt(max(excess, 1.0) / weights[kept].sum()), kept.sum()


# --- What a plan says of memory and exchanges, rank by rank, round by round, array by array ---------------


class StageForecast:
    """What a stage needs of each rank, counted item by item.

    Parameters
    ----------
    stage : Stage
    partition : Partition
    limit : int
        Bytes that a rank gathers at a time.
    held : mapping of str to (array, boxes, owners)
        Arrays in the memory of ranks, those that the stage writes among them.
    written : mapping of str to (array, boxes, owners)
        All that the stage writes.
    todo : sequence of int
        Chunks that are still to do.
    nodes : int
    in_memory : bool
        Nothing lies in files.
    """

    def __init__(self, stage, partition, limit, held, written, todo, nodes=1, in_memory=False):
        self.stage, self.held, self.written, self.todo = stage, held, written, list(todo)
        self.in_memory = in_memory
        self.ranks = partition.ranks
        self.node = [rank * nodes // self.ranks for rank in range(self.ranks)]
        self.chunks = [stage.chunk(number) for number in range(len(stage.grid))]
        self.batch = max(
            1, limit // max(1, max(map(self._chunk_bytes, self.chunks), default=0) + self._returned)
        )
        self.rounds = self._rounds(partition, limit)
        self.sent, self.messages = [0] * self.ranks, [0] * self.ranks
        self.between_nodes = 0
        self.needed = [0] * self.ranks
        self._exchanges()
        self._work()
        self._own_messages()

    def share(self, name) -> list[int]:
        """Return the bytes of an array that each rank holds."""
        array, boxes, owners = self.held[name]
        found = [0] * self.ranks
        for box, owner in zip(boxes, owners, strict=True):
            found[owner] += nbytes(array, stored_items(array, box))
        return found

    def peak(self, baseline: int) -> int:
        """Return the most bytes that a rank takes."""
        shares = [self.share(name) for name in self.held]
        return baseline + max(
            sum(share[rank] for share in shares) + self.needed[rank] for rank in range(self.ranks)
        )

    # Bytes of one chunk.

    @property
    def _returned(self) -> int:
        return getattr(self.stage, "chunk_bytes", 0)

    def _read_bytes(self, need, chunk) -> int:
        sizes = [nbytes(need.array, stored_items(need.array, box)) for box in need.boxes(chunk)]
        return max(sizes, default=0) if getattr(need, "one_by_one", False) else sum(sizes)

    def _is_gathered(self, need) -> bool:
        """Whether it comes from the memory of ranks; records that come one by one lie in files as well."""
        one_by_one = getattr(need, "one_by_one", False) and not self.in_memory
        return need.array.name in self.held and not one_by_one

    def _chunk_bytes(self, chunk) -> int:
        parts = (*self.stage.reads, *self.stage.targets)
        return sum(self._read_bytes(part, chunk) for part in parts)

    def _work(self):
        """Gathered for a round, and the largest chunk; what is gathered or held is not counted once more."""
        kind = type(self.stage).__name__
        largest = max(map(self._chunk_bytes, self.chunks), default=0)
        if kind == "Stream":
            work = 6 * largest
        else:
            work = 0
            for chunk in self.chunks:
                own = 0
                for need in self.stage.reads:
                    size = self._read_bytes(need, chunk)
                    own += 0 if self._is_gathered(need) else size
                    own += size if need.copies else 0
                for output in self.stage.targets:
                    own += 0 if output.array.name in self.held else self._read_bytes(output, chunk)
                work = max(work, own)
            work += 3 * largest if self.stage.scratch is None else self.stage.scratch
            work += self._returned * (self.batch if kind == "Sink" else 1)
        for rank in range(self.ranks):
            self.needed[rank] = max(self.needed[rank], self._gathered[rank] + work)
        if kind == "Reduce":
            self.needed[0] = max(self.needed[0], self.stage.rows.nbytes + self.stage.finish_bytes)

    # Exchanges.

    def _boxes(self, need, numbers) -> list:
        """What a rank gathers for some chunks: each box once."""
        found = []
        for number in numbers:
            found += [box for box in need.boxes(self.chunks[number]) if box not in found]
        return found

    def _rounds(self, partition, limit) -> list:
        """Which chunks each rank works on, round by round."""
        if type(self.stage).__name__ == "Sink":
            rounds, left = [], list(self.todo)
            while left:
                now, left = left[: self.ranks * self.batch], left[self.ranks * self.batch :]
                share, more = divmod(len(now), self.ranks)
                sizes = [share + (rank < more) for rank in range(self.ranks)]
                rounds.append([[now.pop(0) for _ in range(size)] for size in sizes])
            return rounds
        shares = [[n for n in self.todo if n in partition.owned(rank)] for rank in range(self.ranks)]
        gathered = [
            sum(
                nbytes(need.array, stored_items(need.array, box))
                for need in self.stage.reads
                if self._is_gathered(need)
                for box in self._boxes(need, share)
            )
            for share in shares
        ]
        if max(gathered) <= limit:
            return [shares]
        rounds = []
        while any(shares):
            rounds.append([share[: self.batch] for share in shares])
            shares = [share[self.batch :] for share in shares]
        return rounds

    def _exchanges(self):
        """Blocks come array by array; while they do, what goes out and what comes in lie beside them."""
        self._gathered = [0] * self.ranks
        for shares in self.rounds:
            gathered = [0] * self.ranks
            for need in self.stage.reads:
                if not self._is_gathered(need):
                    continue
                moved = self._moved(need, shares)
                for rank in range(self.ranks):
                    gathered[rank] += sum(moved[giver][rank] for giver in range(self.ranks))
                    others = [other for other in range(self.ranks) if other != rank]
                    outgoing = sum(moved[rank][other] for other in others)
                    incoming = sum(moved[other][rank] for other in others)
                    self.needed[rank] = max(self.needed[rank], gathered[rank] + outgoing + incoming)
                    self.sent[rank] += outgoing
                    self.messages[rank] += sum(moved[rank][other] > 0 for other in others)
                    self.between_nodes += sum(
                        moved[rank][other] for other in others if self.node[rank] != self.node[other]
                    )
            self._gathered = [max(pair) for pair in zip(self._gathered, gathered, strict=True)]

    def _moved(self, need, shares) -> list[list[int]]:
        """Return the bytes that each rank gives to each, itself among them."""
        array, boxes, owners = self.held[need.array.name]
        blocks = [stored_items(array, box) for box in boxes]
        moved = [[0] * self.ranks for _ in range(self.ranks)]
        for taker, numbers in enumerate(shares):
            for box in self._boxes(need, numbers):
                wanted = stored_items(array, box)
                for block, owner in zip(blocks, owners, strict=True):
                    moved[owner][taker] += nbytes(array, wanted & block)
        return moved

    def _own_messages(self):
        """A stream hands out each block by itself; rows go to rank 0, those of a rank in one piece."""
        kind = type(self.stage).__name__
        name = self.stage.arrays[0].name if kind in ("Stream", "Reduce") else None
        if kind == "Reduce" and name not in self.held:
            return
        if name is not None:
            array, boxes, owners = self.written[name]
            givers = set()
            for number, (box, owner) in enumerate(zip(boxes, owners, strict=True)):
                size = nbytes(array, stored_items(array, box))
                if owner == 0 or (kind == "Stream" and number not in self.todo):
                    continue
                self.sent[0 if kind == "Stream" else owner] += size
                self.between_nodes += size if self.node[owner] != self.node[0] else 0
                if kind == "Stream":
                    self.messages[0] += 1
                elif size:
                    givers.add(owner)
            for giver in givers:
                self.messages[giver] += 1


def stored_items(array, box) -> frozenset[int]:
    """Return where the items of a box lie in storage."""
    return frozenset(first + i for first, _, count in array.runs(box) for i in range(count))


def nbytes(array, items) -> int:
    return len(items) * np.dtype(array.dtype).itemsize


def predicted_without(signal, design, volume):
    """Return what the ordinary tensor fit to the logarithms of all other volumes says of one."""
    others = np.arange(len(signal)) != volume
    tensors = np.linalg.lstsq(design[others], np.log(signal[others]), rcond=None)[0]
    return np.exp(design[volume] @ tensors)


def compared(signal, predicted, most=5.0, hot_ratio=3.0, hot_errors=10.0):
    """Return mean ratio, relative error and number of hot voxels of each volume, from (V, n) arrays."""
    off = signal - predicted
    mean_off = np.abs(off).mean(axis=1)
    ratio, error, hot = [], mean_off / predicted.mean(axis=1), []
    for v in range(len(signal)):
        ratio.append(np.mean([min(s / p, most) for s, p in zip(signal[v], predicted[v], strict=True)]))
        hot.append(
            sum(
                signal[v, i] > hot_ratio * predicted[v, i]
                and off[v, i] > hot_errors * mean_off[v]
                and v == np.nanargmax(off[:, i])
                for i in range(signal.shape[1])
            )
        )
    return np.array(ratio), error, np.array(hot)
