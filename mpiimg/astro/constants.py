"""Numbers that all of the survey's steps share."""

#: Magnitude (AB) of a flux of 1 in warps, coadds and catalogues: all exposures are brought to it.
ZERO_POINT = 27.0

#: Standard deviations per median absolute deviation, for normal noise.
SIGMA_PER_MAD = 1.482602218505602
