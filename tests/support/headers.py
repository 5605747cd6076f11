"""Headers of whole sensors for tests: plain TAN, the distortion of DECam as TPV, and a strong one as SIP."""

import numpy as np
from astropy.io.fits import Header

#: PVi_0 to PVi_10 of a DECam exposure of 2014 (CCDNUM 43, Community Pipeline).
DECAM_PV = {
    1: "-0.001128772369703 1.006874428265 -0.000206445605717 0 -0.002743498661584 0.001143149690156 "
    "0.0002270829696702 -0.00161578583244 -0.0008587605005299 -0.00190785100994 0.001312486445213",
    2: "0.000498404449843 1.00539833747 -0.0002926089692526 0 -0.002349350268471 -0.001670736414565 "
    "0.0007361927385533 -0.007320179413138 -0.0011062154331 -0.002200675267347 -0.0004331407846251",
}


def tan(shape, center=(150.0, 2.2), scale=0.263, angle=0.0):
    """A TAN header of (ny, nx) pixels about `center` (degrees), turned by `angle` degrees."""
    header = Header()
    header["NAXIS"] = 2
    header["NAXIS1"], header["NAXIS2"] = shape[1], shape[0]
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CUNIT1"] = header["CUNIT2"] = "deg"
    header["CRVAL1"], header["CRVAL2"] = center
    header["CRPIX1"], header["CRPIX2"] = (shape[1] + 1) / 2, (shape[0] + 1) / 2
    cosine, sine, degrees = np.cos(np.radians(angle)), np.sin(np.radians(angle)), scale / 3600
    header["CD1_1"], header["CD1_2"] = -degrees * cosine, degrees * sine
    header["CD2_1"], header["CD2_2"] = degrees * sine, degrees * cosine
    return header


def decam(shape=(4072, 4000), corner=(5200, 3100), center=(244.3831, 12.3729), angle=90.05):
    """A TPV header of a sensor whose first pixel lies `corner` (x, y) pixels from the telescope's axis."""
    header = tan(shape, center, angle=angle)
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    header["CRPIX1"], header["CRPIX2"] = -corner[0], -corner[1]
    for axis, values in DECAM_PV.items():
        for n, value in enumerate(values.split()):
            header[f"PV{axis}_{n}"] = float(value)
    return header


def sip(shape=(4072, 4000), center=(10.0, -30.0), angle=20.0):
    """A TAN-SIP header with distortions of up to thirty pixels in the corners, and no inverse."""
    header = tan(shape, center, angle=angle)
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["A_ORDER"] = header["B_ORDER"] = 3
    header["A_2_0"], header["A_1_1"], header["A_0_2"], header["A_3_0"] = 2e-6, -1e-6, 1e-6, 1.5e-9
    header["B_2_0"], header["B_1_1"], header["B_0_2"], header["B_2_1"] = -1e-6, 2e-6, 3e-6, 1e-9
    return header
