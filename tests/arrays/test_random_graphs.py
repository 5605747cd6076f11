"""Random graphs of primitives are what NumPy makes of the same."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from support.random_graphs import graphs

import mpiimg as mi


def check(pair, made):
    assert made.dtype == pair.plain.dtype, (made.dtype, pair.plain.dtype)
    assert made.shape == pair.plain.shape
    if pair.exact:
        np.testing.assert_array_equal(made, pair.plain)
    else:
        scale = np.nanmax(np.abs(pair.plain), initial=1.0)
        np.testing.assert_allclose(
            made, pair.plain, rtol=1e-4, atol=1e-5 * scale if np.isfinite(scale) else 0
        )


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with mi.session(tmp_path_factory.mktemp("session")) as opened:
        yield opened


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(pair=graphs())
def test_random_graphs_are_as_numpy_makes_them(session, pair):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(pair, np.asarray(pair.lazy.compute()))
