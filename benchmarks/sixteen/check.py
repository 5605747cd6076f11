"""Run the sixteen operations on a system and compare with NumPy: check.py dask|spark|cubed.

Prints a line for each: "yes", "by hand", "no" where the system's file has none, or what went wrong.
"""

from __future__ import annotations

import importlib
import sys

import cases


def main(system: str) -> int:
    """Run all, and return how many went wrong."""
    functions, wrong = vars(importlib.import_module(f"on_{system}")), 0
    by_hand = functions.get("BY_HAND", ())
    for name in cases.OPERATIONS:
        said = "no"
        if name in functions:
            try:
                right = cases.agrees(name, functions[name]())
                said = ("by hand" if name in by_hand else "yes") if right else "differs"
            except Exception as error:
                said = f"failed: {type(error).__name__}: {error}"
            wrong += said not in ("yes", "by hand")
        print(f"{name}: {said}", flush=True)
    return wrong


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
