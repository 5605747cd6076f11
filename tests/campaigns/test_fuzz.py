"""Inputs changed in every way that is registered, and run through the real tools.

    pytest tests/campaigns/test_fuzz.py -k image                       one family, a tenth of its cases
    pytest tests/campaigns/test_fuzz.py -m long -k pixdim --hypothesis-seed=7

What fails is made as small as it gets, and shown with what was drawn; the same seed draws the same cases.
"""

from __future__ import annotations

import importlib
import itertools
import shutil
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
from campaigns.fuzzing import MUTATIONS, Kind, check
from hypothesis import strategies as st
from support import launch

for family in ("images", "gradients", "exposures", "spoilt_exposures", "texts", "records"):
    importlib.import_module(f"campaigns.fuzz_{family}")

pytestmark = pytest.mark.tool

#: Cases of all mutations together in make test-long, on both installs; in make test it is one of each.
MANY = 1000

#: Of what is drawn where the command line says nothing.
SEED = 12

#: Without the one that looks which parts of a case matter: it takes as long again.
PHASES = (hypothesis.Phase.generate, hypothesis.Phase.shrink)

#: One case in twelve runs on two ranks.
RANKS = st.sampled_from([None] * 11 + [2])

_case_numbers = itertools.count()


def share(name: str, cases: int) -> int:
    """Return how many of all cases are those of a mutation."""
    place, count = list(MUTATIONS).index(name), len(MUTATIONS)
    return cases * (place + 1) // count - cases * place // count


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Return a function that gives the folder of a family's sound inputs."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family.__name__.lower())
            family.prepare(made[family])
        return made[family]

    return folder


@pytest.fixture(scope="module")
def figures(request):
    """Count the cases that held, and say at the end how many of each kind they were."""
    held = Counter()
    yield held
    kinds = Counter()
    for (_, kind), count in held.items():
        kinds[kind.name.lower()] += count
    families = ", ".join(sorted({family.__name__.lower() for family, _ in held}))
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{held.total()} cases held: {words}; of {families}")


@pytest.fixture
def fuzz(request, sound, figures, tmp_path):
    """Return a function that runs so many cases of a mutation."""
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path / "hypothesis")

    def run(name: str, cases: int, seed: int) -> None:
        seed = request.config.getoption("--hypothesis-seed") or seed
        one = MUTATIONS[name]
        calls = itertools.count()
        companions = [m for m in MUTATIONS.values() if (m.family, m.kind) == (one.family, Kind.NEUTRAL)]
        companions = [m for m in companions if m is not one] if one.kind is Kind.NEUTRAL else []

        @hypothesis.seed(f"{seed} {name}")
        @hypothesis.settings(
            max_examples=cases + 1,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            print_blob=False,
            phases=PHASES,
        )
        @hypothesis.given(st.data())
        def case(data):
            # Hypothesis begins with the simplest of each draw, which tells least: it is drawn, and not run.
            number = next(_case_numbers) if next(calls) else None
            it = one.family(tmp_path / str(number), sound(one.family))
            ranks = data.draw(RANKS, "ranks")
            if companions and data.draw(st.booleans(), "with another"):
                data.draw(st.sampled_from(companions), "which").change(it, data.draw)
            words = one.change(it, data.draw)
            if number is not None:
                check(it, one.kind, words, ranks)
                figures[one.family, one.kind] += 1
            shutil.rmtree(it.folder)

        case()

    return run


@pytest.mark.parametrize("name", MUTATIONS)
def test_100_cases(name, fuzz):
    assert len(MUTATIONS) >= 100
    fuzz(name, 1, SEED)


@pytest.mark.long
@pytest.mark.parametrize("name", MUTATIONS)
def test_1000_cases(name, fuzz):
    """Half of them where the tests run on one install, half where they run on the other."""
    alone = launch.other_install() is None
    seed = {".venv": 1, ".venv-mpi": 2}.get(Path(sys.prefix).name, 1)
    fuzz(name, share(name, MANY if alone else MANY // 2), seed)
