"""The identity of a function: what changes it, what does not, and what cannot be known."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import io
import itertools
import os
import pathlib
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
import types

import cloudpickle
import numpy as np
import pytest

from mpiimg.arrays.identity import identity


def digest(value, *more) -> str:
    found = identity(value, *more)
    assert found.known, found.why
    return found.digest


def defined(text: str, name: str = "f", module: str = "somewhere"):
    """What `text` defines under a name, as a module of the user's."""
    names = {"__name__": module}
    exec(compile(textwrap.dedent(text), f"{module}.py", "exec"), names)
    return names[name]


def times(k):
    def f(block):
        return block * k

    return f


# What changes it.


def test_a_closure():
    assert digest(times(5)) == digest(times(5)) != digest(times(7))
    assert digest(times(5)) != digest(times(5.0)) != digest(times(True))


def test_two_lambdas_on_one_line():
    one, other = lambda b: b + 1, lambda b: b + 2
    assert digest(one) != digest(other)


PAIRS = {
    "a default": ("def f(b, k=5): return b * k", "def f(b, k=7): return b * k"),
    "a keyword's default": ("def f(b, *, k=5): return b * k", "def f(b, *, k=7): return b * k"),
    "a global": ("K = 5\ndef f(b): return b * K", "K = 7\ndef f(b): return b * K"),
    "a global of a lambda within": (
        "K = 5\ndef f(b): return list(map(lambda x: x * K, b))",
        "K = 7\ndef f(b): return list(map(lambda x: x * K, b))",
    ),
    "a global of a comprehension": (
        "K = 5\ndef f(b): return [x * K for x in b]",
        "K = 7\ndef f(b): return [x * K for x in b]",
    ),
    "a helper": (
        "def g(b): return b + 1\ndef f(b): return g(b)",
        "def g(b): return b + 2\ndef f(b): return g(b)",
    ),
    "a helper of a helper": (
        "K = 5\ndef h(b): return b + K\ndef g(b): return h(b)\ndef f(b): return g(b)",
        "K = 7\ndef h(b): return b + K\ndef g(b): return h(b)\ndef f(b): return g(b)",
    ),
    "a method that is called": (
        "def f(b): return b.sum()",
        "def f(b): return b.max()",
    ),
    "a function of NumPy": (
        "import numpy as np\ndef f(b): return np.linalg.pinv(b)",
        "import numpy as np\ndef f(b): return np.linalg.inv(b)",
    ),
    "a zero with a sign": ("def f(b): return b + 0.0", "def f(b): return b + -0.0"),
    "the order of a dict": (
        "K = dict(a=1, b=2)\ndef f(b): return sum(K.values())",
        "K = dict(b=2, a=1)\ndef f(b): return sum(K.values())",
    ),
    "a class": (
        "class C:\n k = 5\ndef f(b): return b * C.k",
        "class C:\n k = 7\ndef f(b): return b * C.k",
    ),
    "a method of a base class": (
        "class A:\n def g(self, b): return b + 1\nclass C(A): pass\ndef f(b): return C().g(b)",
        "class A:\n def g(self, b): return b + 2\nclass C(A): pass\ndef f(b): return C().g(b)",
    ),
    "super": (
        "class A:\n def g(s, b): return b + 1\nclass C(A):\n def g(s, b): return super().g(b)\nf = C().g",
        "class A:\n def g(s, b): return b + 2\nclass C(A):\n def g(s, b): return super().g(b)\nf = C().g",
    ),
    "a property": (
        "class C:\n @property\n def k(self): return 5\nf = C()",
        "class C:\n @property\n def k(self): return 7\nf = C()",
    ),
    "a class method": (
        "class C:\n @classmethod\n def f(cls, b): return b + 5\nf = C.f",
        "class C:\n @classmethod\n def f(cls, b): return b + 7\nf = C.f",
    ),
    "slots": (
        "class C:\n __slots__ = ('k', '__p')\n def __init__(self): self.k = 1; self.__p = 5\nf = C()",
        "class C:\n __slots__ = ('k', '__p')\n def __init__(self): self.k = 1; self.__p = 7\nf = C()",
    ),
    "an attribute of the function": (
        "def f(b): return b * f.k\nf.k = 5",
        "def f(b): return b * f.k\nf.k = 7",
    ),
    "a cached function": (
        "import functools\n@functools.lru_cache\ndef f(b): return b + 5",
        "import functools\n@functools.lru_cache\ndef f(b): return b + 7",
    ),
    "a single dispatch": (
        "import functools\n@functools.singledispatch\ndef f(b): pass\n@f.register\ndef _(b: int): return 5",
        "import functools\n@functools.singledispatch\ndef f(b): pass\n@f.register\ndef _(b: int): return 7",
    ),
    "the function that is vectorized": (
        "import numpy as np\nf = np.vectorize(lambda x: x + 5)",
        "import numpy as np\nf = np.vectorize(lambda x: x + 7)",
    ),
    "a name that only one has": ("def f(b): return g(b)", "def f(b): return h(b)"),
    "what is caught": (
        "def f(b):\n try: return b()\n except ValueError: return 1",
        "def f(b):\n try: return b()\n except KeyError: return 1",
    ),
    "a value in an f-string": ("def f(b): return f'{b:.2f}'", "def f(b): return f'{b:.3f}'"),
    "the one of two names": ("def f(a, b): return a - b", "def f(b, a): return a - b"),
}


@pytest.mark.parametrize("what", PAIRS)
def test_what_changes_it(what):
    one, other = PAIRS[what]
    assert digest(defined(one)) == digest(defined(one, module="elsewhere"))
    assert digest(defined(one)) != digest(defined(other))


def test_an_instance_by_its_attributes():
    class Scale:
        def __init__(self, k):
            self.k = k

        def __call__(self, block):
            return block * self.k

        def method(self, block):
            return block + self.k

    assert digest(Scale(5)) == digest(Scale(5)) != digest(Scale(7))
    assert digest(Scale(5).method) == digest(Scale(5).method) != digest(Scale(7).method)
    assert digest(Scale(5).method) != digest(Scale(5))


def test_a_partial():
    made = [functools.partial(np.multiply, 5), functools.partial(np.multiply, 7)]
    assert digest(made[0]) != digest(made[1])
    one, other = (functools.partial(times, **names) for names in ({"k": 5}, {"k": 7}))
    assert digest(one) != digest(other)


def test_a_function_that_is_wrapped():
    def shouted(function):
        @functools.wraps(function)
        def call(*blocks):
            return function(*blocks)

        return call

    assert digest(shouted(times(5))) == digest(shouted(times(5))) != digest(shouted(times(7)))


def test_a_compiled_function():
    numba = pytest.importorskip("numba")
    one, other = (numba.njit(times(k)) for k in (5, 7))
    before = digest(one)
    assert one(3) == 15
    assert digest(one) == before != digest(other)


def test_a_global_that_is_changed_between_two_graphs():
    f = defined("K = [5]\ndef f(b): return b * K[0]")
    before = digest(f)
    f.__globals__["K"][0] = 7
    assert digest(f) != before


# What does not.


SAME = {
    "a comment": ("def f(b):\n return b + 1", "# why\n\n\ndef f(b):\n # because\n return (b +\n  1)"),
    "a docstring": ("def f(b):\n 'One.'\n return b + 1", "def f(b):\n 'Another.'\n return b + 1"),
    "an annotation": ("def f(b): return b + 1", "def f(b: int) -> float: return b + 1"),
    "its name": ("def f(b): return b + 1", "def g(b): return b + 1\nf = g"),
    "a global that it does not read": ("K = 5\ndef f(b): return b.K", "K = 7\ndef f(b): return b.K"),
    "the order of a set": (
        "K = {'a', 'b', 'cc'}\ndef f(b): return K",
        "K = {'cc', 'b', 'a'}\ndef f(b): return K",
    ),
    "where a class lies": (
        "class C:\n 'Doc.'\n def g(self): return 1\ndef f(b): return C()",
        "import os\n\n\nclass C:\n def g(self):\n  'Doc.'\n  return 1\ndef f(b): return C()",
    ),
}


@pytest.mark.parametrize("what", SAME)
def test_what_does_not_change_it(what):
    one, other = SAME[what]
    assert digest(defined(one)) == digest(defined(other))


# Values.


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Method:
    sigma: float
    radius: int = 1


VALUES = [
    None,
    0,
    1,
    1.0,
    -0.0,
    float("nan"),
    1j,
    "1",
    b"1",
    bytearray(b"1"),
    (1,),
    [1],
    {1},
    frozenset({1}),
    {1: 2},
    {1: 3},
    range(3),
    slice(1, 2),
    list(range(20)),
    tuple(range(20)),
    [*range(19), 19.0],
    np.float32(1),
    np.float64(1),
    np.arange(3),
    np.arange(3.0),
    np.arange(6).reshape(2, 3),
    np.arange(6).reshape(3, 2).T,
    np.asfortranarray(np.arange(6).reshape(3, 2)),
    np.array(["a", None], object),
    np.ma.masked_array([1, 2], [0, 1]),
    np.ma.masked_array([1, 2], [1, 0]),
    np.zeros((0, 3)),
    np.zeros(()),
    np.dtype("f4"),
    np.dtype([("a", "f4")]),
    np.add,
    np.multiply,
    len,
    str.upper,
    "a".upper,
    "b".upper,
    re.compile("a"),
    re.compile("a", re.I),
    pathlib.Path("a"),
    pathlib.Path("b"),
    Colour.RED,
    Colour.BLUE,
    Colour,
    Method(1.0),
    Method(2.0),
    Method,
    types.SimpleNamespace(a=1),
    types.SimpleNamespace(a=2),
    list[int],
    list[float],
    functools.partial(len),
    np.linalg.pinv,
    np.linalg.inv,
]


def test_values_are_told_from_each_other():
    digests = [digest(value) for value in VALUES]
    assert [
        (VALUES[i], VALUES[j])
        for i, j in itertools.combinations(range(len(VALUES)), 2)
        if digests[i] == digests[j]
    ] == []


def test_values_have_the_same_digest_when_they_are_read_back():
    restored = cloudpickle.loads(cloudpickle.dumps(VALUES))
    for value, again in zip(VALUES, restored, strict=True):
        assert digest(value) == digest(again), repr(value)


def test_values_that_hold_themselves():
    def loop(k):
        made = [k]
        made.append({"again": made})
        return made

    assert digest(loop(1)) == digest(loop(1)) != digest(loop(2))
    one = defined("def f(n): return g(n)\ndef g(n): return f(n - 1) if n else 0")
    assert digest(one) != digest(defined("def f(n): return g(n)\ndef g(n): return f(n - 1) if n else 1"))


def test_many_values_that_know_each_other_take_no_longer_than_there_are():
    class Node:
        pass

    nodes = [Node() for _ in range(60)]
    for node in nodes:
        node.others = nodes
    began = time.process_time()
    digest(nodes[0])
    assert time.process_time() - began < 2


def test_dask_tokenize_is_honoured():
    class Remote:
        def __init__(self, version):
            self.version, self.socket = version, threading.Lock()

        def __dask_tokenize__(self):
            return "remote", self.version

    assert digest(Remote(1)) == digest(Remote(1)) != digest(Remote(2))


def test_values_of_libraries_are_known_by_what_they_hold():
    import astropy.wcs
    import pandas
    import scipy.interpolate
    import xarray

    def made(k):
        wcs = astropy.wcs.WCS(naxis=2)
        wcs.wcs.crval = [k, 2.0]
        return (
            wcs,
            pandas.DataFrame({"a": [1.0, k]}),
            scipy.interpolate.CubicSpline([0, 1, 2], [0, 1, k]),
            xarray.DataArray(np.full(3, k), dims="x"),
            np.polynomial.Polynomial([1, k]),
        )

    for one, again, other in zip(made(5.0), made(5.0), made(7.0), strict=True):
        assert digest(one) == digest(again) != digest(other), type(one)


# What cannot be known.


def test_what_cannot_be_known_says_why(tmp_path):
    rng, lock, drawn = np.random.default_rng(0), threading.Lock(), (n for n in range(3))
    with open(tmp_path / "x", "w") as file:
        for value, words in (
            (
                lambda b: b + rng.normal(),
                "rng, which it takes from the function around it, is a random number",
            ),
            (lambda b: (lock, b), "is a lock"),
            (lambda b: drawn, "is a generator, which is used up"),
            (lambda b: file.write(b), "is an open file"),
            (functools.partial(times, random.Random(3)), "is a random number generator"),
            (defined("def f(b): return eval('b')"), r"calls eval\(\)"),
            (defined("def f(b): return globals()['K']"), r"calls globals\(\)"),
            (
                defined("import importlib\ndef f(b): return importlib.import_module(b)"),
                "imports a module whose",
            ),
            (defined("def f(b):\n global K\n K = b"), "sets the global K"),
            (np.frompyfunc(lambda x: x, 1, 1), "cannot be looked into"),
            (defined("import __main__\ndef f(b): return __main__.K"), "the module __main__"),
        ):
            found = identity(value)
            assert not found.known and re.search(words, found.why), (words, found)
            assert found.digest == identity(value).digest


def test_a_counter_of_the_function_around_it():
    def counting():
        n = 0

        def f(block):
            nonlocal n
            n += 1
            return block * n

        return f

    assert "sets n of the function around it" in identity(counting()).why

    def within(block):
        n = 0

        def add():
            nonlocal n
            n += 1

        add()
        return n

    assert digest(within)


CHANGES = {
    "a dict": ("K = {}\ndef f(b):\n K[b] = 1\n return K", "changes the global K"),
    "a dict by setdefault": ("K = {}\ndef f(b): return K.setdefault(b, 1)", "changes the global K"),
    "a dict of a helper": (
        "K = {}\ndef put(b): K[b] = 1\ndef get(b): return K.get(b)\ndef f(b): put(b); return get(b)",
        "changes the global K",
    ),
    "a list": ("K = []\ndef f(b):\n K.append(b)\n return len(K)", "changes the global K"),
    "an item in place": ("K = {'n': 0}\ndef f(b):\n K['n'] += 1\n return K['n']", "changes the global K"),
    "an array": (
        "import numpy as np\nK = np.zeros(3)\ndef f(b):\n K[0] += 1\n return K",
        "changes the global K",
    ),
    "itself": ("def f(b):\n f.n = b\n return b", "changes the global f"),
    "the closure": (
        "def make():\n K = {}\n def f(b):\n  K[b] = 1\n  return K\n return f\nf = make()",
        "changes K of the function around it",
    ),
    "an attribute": (
        "class C:\n n = 0\n def __call__(self, b):\n  self.n += 1\n  return b * self.n\nf = C()",
        r"C.__call__\(\) changes the attribute n",
    ),
    "an attribute of an attribute": (
        "class C:\n def __init__(s): s.k = {}\n def g(s, b):\n  s.k[b] = 1\n  return s.k\nf = C().g",
        r"C.g\(\) changes the attribute k",
    ),
    "a class": ("class C: n = 0\ndef f(b):\n C.n += 1\n return C.n", "changes the global C"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_it_changes_itself_is_not_part_of_it_since_ranks_differ_in_that(what):
    text, words = CHANGES[what]
    f = defined(text)
    found = identity(f)
    assert not found.known and re.search(words, found.why), found
    f(3)
    assert identity(f) == found


def test_what_it_changes_of_a_call_alone_is_its_own_affair():
    f = defined("""
        import numpy as np
        class C:
            def __init__(self, k):
                self.set_k(k)
            def set_k(self, k):
                self.k = k
            def __call__(self, b):
                out = np.zeros(3)
                made = {}
                def inner(i):
                    out[i] = i
                    made[i] = b
                inner(1)
                b.mark = 1
                np.random.seed(3)
                return out * self.k
        f = C(5)
    """)
    before = digest(f)
    f.set_k(7)
    assert digest(f) != before


def test_what_is_kept_for_the_next_call_but_follows_from_the_rest_does_not_count():
    f = defined("""
        import functools
        class C:
            k = 5
            @functools.cached_property
            def table(self): return [self.k] * 3
            def __call__(self, b): return self.table
        f = C()
    """)
    before = digest(f)
    f(3)
    assert digest(f) == before
    g = defined("import functools\n@functools.cache\ndef f(b): return b + 1")
    before = digest(g)
    g(3)
    assert digest(g) == before


def test_what_is_nested_too_deeply():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    found = identity(nested)
    assert not found.known and "too deeply" in found.why
    while nested:
        nested = nested[0]


# Modules.


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Writes modules of a user's, and imports one anew."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name="", **texts):
        for module in set(sys.modules) - before:
            if module.startswith("own_"):
                del sys.modules[module]
        for module, text in texts.items():
            path = tmp_path / f"{module.replace('_in_', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))
            os.utime(path, ns=(time.time_ns(), time.time_ns()))
        importlib.invalidate_caches()
        return importlib.import_module(name) if name else None

    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    yield write
    sys.dont_write_bytecode = kept
    write()


MODULES = {
    "a helper": ("from own_b import g\ndef f(b): return g(b)", "def g(b): return b + {}"),
    "a helper by its module": ("import own_b\ndef f(b): return own_b.g(b)", "def g(b): return b + {}"),
    "an import in the body": ("def f(b):\n import own_b\n return own_b.g(b)", "def g(b): return b + {}"),
    "a name imported in the body": (
        "def f(b):\n from own_b import g\n return g(b)",
        "def g(b): return b + {}",
    ),
    "by importlib": (
        "import importlib\ndef f(b): return importlib.import_module('own_b').g(b)",
        "def g(b): return b + {}",
    ),
    "by its module and importlib": (
        "from importlib import import_module\ndef f(b): return import_module('own_b').g(b)",
        "def g(b): return b + {}",
    ),
}


@pytest.mark.parametrize("what", MODULES)
def test_a_local_module_that_is_changed(local, what):
    user, helper = MODULES[what]
    found = [digest(local("own_a", own_a=user, own_b=helper.format(k)).f) for k in (5, 7, 5)]
    assert found[0] == found[2] != found[1]


def test_what_a_local_module_imports(local):
    user = {
        "own_a": "def f(b):\n import own_b\n return own_b.g(b)",
        "own_b": "from own_c import K\ndef g(b): return K",
    }
    found = [digest(local("own_a", **user, own_c=f"K = {k}").f) for k in (5, 7, 5)]
    assert found[0] == found[2] != found[1]


def test_a_package_and_its_submodules(local):
    texts = {
        "own_p_in___init__": "",
        "own_p_in_a": "from . import b\nfrom .c import K\ndef f(x):\n from . import d\n return d.g()",
    }
    for part in "bcd":
        found = []
        for k in (5, 7, 5):
            others = {f"own_p_in_{one}": f"K = 1\ndef g(): return {k if one == part else 0}" for one in "bcd"}
            others["own_a"] = "def f(x):\n from own_p import a\n return a.f(x)"
            found.append(digest(local("own_a", **texts, **others).f))
        assert found[0] == found[2] != found[1], part


def test_a_module_whose_value_is_set_after_import(local):
    f = local("own_a", own_a="import own_b\ndef f(b): return own_b.K", own_b="K = 5").f
    before = digest(f)
    sys.modules["own_b"].K = 7
    assert digest(f) != before


def test_a_module_that_is_changed_and_not_loaded_again_is_unknown(local, tmp_path):
    """What runs is the old code, and the file has the new one."""
    user = "import own_b\ndef f(b):\n import own_b\n return own_b.g(b)"
    f = local("own_a", own_a=user, own_b="def g(b): return b + 5").f
    assert digest(f)
    (tmp_path / "own_b.py").write_text("def g(b): return b + 77")
    assert "the module own_b was changed after it was imported" in identity(f).why
    importlib.reload(sys.modules["own_b"])
    assert digest(f)


def test_a_module_that_is_changed_before_the_first_look_is_unknown_too(local, tmp_path):
    sys.dont_write_bytecode = False
    f = local("own_a", own_a="import own_b\ndef f(b): return own_b.g(b)", own_b="def g(b): return b + 5").f
    (tmp_path / "own_b.py").write_text("def g(b): return b + 77")
    os.utime(tmp_path / "own_b.py", (1, 1))
    assert "was changed after it was imported" in identity(f).why


def test_an_installed_module_is_known_by_its_version(monkeypatch):
    from mpiimg.arrays import modules

    f = defined("import scipy.ndimage as nd\nimport numpy as np\ndef f(b): return nd.sobel(np.abs(b))")
    before = digest(f)
    monkeypatch.setattr(modules, "_distribution", lambda top: (top, "0.1"))
    assert digest(f) != before


# Other processes.

SCRIPT = '''
import numpy as np, re, enum, functools, dataclasses
K, NAMES, TABLE = 5, {"one", "two", "three"}, np.arange(12.0).reshape(3, 4)
class Colour(enum.Enum):
    RED = 1
@dataclasses.dataclass(frozen=True)
class Method:
    sigma: float = 2.0
    names: frozenset = frozenset({"a", "bb", "ccc"})
    def apply(self, b):
        return np.linalg.norm(b) * self.sigma
class Scale:
    """Doc."""
    def __init__(self, k): self.k = k
    def __call__(self, b): return helper(b) * self.k
def helper(b):
    """Doc."""
    return re.sub("a", "b", str(b)) if K in NAMES else [TABLE * x for x in b]
def around(function):
    @functools.wraps(function)
    def call(b, *, method=Method()):
        return method.apply(function(b)), Colour.RED, helper
    return call
@around
def decorated(b): return b + K
def deep(b): return (lambda x: [x, K, np.vectorize(helper)])(b)
ALL = [helper, decorated, deep, Scale(3), Scale(3).__call__, Method().apply, Method, Colour, NAMES,
       functools.partial(deep, names=NAMES)]
'''

PRINT = """
import sys
from mpiimg.arrays.identity import identity
found = [identity(one) for one in ALL]
assert all(one.known for one in found), found
print(*[one.digest for one in found])
"""


def test_it_is_the_same_in_all_processes_and_however_it_is_defined(tmp_path):
    """As a script, a module, a cell of a notebook and restored, under other seeds of hashes."""
    (tmp_path / "own_module.py").write_text(SCRIPT)
    (tmp_path / "script.py").write_text(SCRIPT + PRINT)
    sys.path.insert(0, str(tmp_path))
    try:
        by_value = importlib.import_module("own_module")
        cloudpickle.register_pickle_by_value(by_value)
        payload = cloudpickle.dumps(by_value.ALL)
        cloudpickle.unregister_pickle_by_value(by_value)
        here = " ".join(digest(one) for one in by_value.ALL)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("own_module", None)
    (tmp_path / "payload").write_bytes(payload)
    cell = f"exec(compile({SCRIPT!r}, '<ipython-input-1>', 'exec'), globals())\n" + PRINT
    restored = "import cloudpickle\nALL = cloudpickle.loads(open('payload', 'rb').read())\n" + PRINT
    commands = {
        "script": ["script.py"],
        "module": ["-c", "from own_module import ALL\n" + PRINT],
        "cell": ["-c", cell],
        "restored": ["-c", restored],
    }
    for seed, (how, words) in enumerate(commands.items()):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == here, how


def test_text_files_and_buffers_are_files():
    assert "an open file" in identity(io.StringIO()).why


def test_a_function_that_cython_compiles_is_known():
    """The class of such functions has no name for its module, but what gives functions theirs."""
    import sep

    def detect(image):
        return sep.extract(image, 3.0)

    known = identity(detect)
    assert known.known, known.why
    assert known.digest == identity(detect).digest
    assert identity(sep.extract).digest != identity(sep.sum_circle).digest
