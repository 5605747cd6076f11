"""Rates: what a machine was measured at is kept by its CPU, and nonsense is not believed."""

from __future__ import annotations

import json

import pytest

from mpiimg.engine import plugins, rates


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_what_was_measured_is_taken_in_place_of_defaults(cache):
    assert rates.load_rates() == rates.DEFAULTS
    file = rates.store_rates({"median": 5e-9})
    assert file.is_relative_to(cache)
    assert rates.load_rates() == rates.DEFAULTS | {"median": 5e-9}


def test_rates_of_both_machines_are_kept(monkeypatch):
    rates.store_rates({"median": 5e-9})
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(rates, "cpu_model", lambda: "another")
        rates.store_rates({"median": 7e-9})
    assert rates.load_rates()["median"] == 5e-9


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"x": 1}', '{"%s": {"median": "fast"}}', '{"%s": {"median": -1}}']
)
def test_a_spoilt_file_is_as_none(text):
    rates.rates_file().parent.mkdir()
    rates.rates_file().write_text(text.replace("%s", rates._key()))
    assert rates.load_rates() == rates.DEFAULTS
    rates.store_rates({"median": 5e-9})
    assert json.loads(rates.rates_file().read_text())[rates._key()] == {"median": 5e-9}


def test_every_sample_runs_and_has_a_default():
    """Each is some work of a known size; one that took no time, or a second, would time something else."""
    samples, defaults = plugins.samples(), plugins.default_rates()
    assert set(samples) == set(defaults)
    assert not set(samples) & set(rates.DEFAULTS)
    for name in ("deflate", "estimate", "fit-wls", "coadd", "nlmeans", "weigh"):
        assert 0 < defaults[name] < 1e-3
        work, units = samples[name]()
        work()
        assert units > 1000
