"""Change one line at a time, at random, and see whether a test notices.

    python tests/support/mutate.py CHECKOUT [CHECKOUT ...] --seed N --count N --out LIST.md

Each CHECKOUT is a worktree of its own, whose package is changed and put back; one change is tried in each at
a time, against the tests that lie where the changed file does, for three minutes at most. Those tests that
run no tool come first. What survives is an equivalent change, or a test that is missing. The list says which
change of which line was tried, and which test noticed.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

#: Rooms whose lines are changed, and the folder of tests of each.
ROOMS = {"engine": "engine", "kernels": "kernels", "formats": "formats", "neuro": "neuro", "astro": "astro"}

#: Seconds that the tests have for one change.
LIMIT = 180

SWAPS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.And: "or",
    ast.Or: "and",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
SIGNS = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.And: "and",
    ast.Or: "or",
    ast.BitAnd: "&",
    ast.BitOr: "|",
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}


@dataclass
class Change:
    """A change of one line, and what came of it.

    Parameters
    ----------
    file : str
        Below the package.
    line : int
    before, after : str
        The line.
    noticed : str
        The first test that failed; "time" where the tests did not end; empty where nothing noticed.
    seconds : float
    """

    file: str
    line: int
    before: str
    after: str
    noticed: str = ""
    seconds: float = field(default=0.0, compare=False)


def changes_of(package: Path, file: str) -> list[Change]:
    """Return every change that may be made to a file: one operator, number, name or statement of a line."""
    text = (package / file).read_text()
    lines, found = text.splitlines(), []

    def add(node_line: int, start: int, end: int, new: str) -> None:
        line = lines[node_line - 1]
        changed = line[:start] + new + line[end:]
        if changed != line:
            found.append(Change(file, node_line, line, changed))

    for node in _living(ast.parse(text)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            _swap(lines, add, node.left, node.comparators[0], node.ops[0])
        elif isinstance(node, ast.BinOp):
            _swap(lines, add, node.left, node.right, node.op)
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                _swap(lines, add, left, right, node.op)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            add(node.lineno, node.col_offset, node.operand.col_offset, "")
        elif isinstance(node, ast.Constant) and node.lineno == node.end_lineno:
            if isinstance(node.value, bool):
                add(node.lineno, node.col_offset, node.end_col_offset, str(not node.value))
            elif isinstance(node.value, int | float):
                add(node.lineno, node.col_offset, node.end_col_offset, repr(node.value + 1))
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in NAMES and node.func.end_lineno == node.lineno:
                end = node.func.end_col_offset
                add(node.lineno, end - len(name), end, NAMES[name])
        elif (isinstance(node, ast.AugAssign) and node.lineno == node.end_lineno) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.lineno == node.end_lineno
        ):
            add(node.lineno, node.col_offset, node.end_col_offset, "pass")
    return found


def _swap(lines, add, left: ast.AST, right: ast.AST, operator: ast.AST) -> None:
    """Swap the operator between two operands, where these stand in one line."""
    kind = type(operator)
    if kind not in SWAPS or left.end_lineno != right.lineno:
        return
    between = lines[right.lineno - 1][left.end_col_offset : right.col_offset]
    at = re.search(rf"(?<![\w<>=!/*]){re.escape(SIGNS[kind])}(?![<>=/*\w])", between)
    if at is not None:
        start = left.end_col_offset + at.start()
        add(right.lineno, start, start + len(SIGNS[kind]), SWAPS[kind])


def _living(tree: ast.AST):
    """Walk what runs and matters: no annotations, no messages, no declarations of help and rates."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Call) and _is_declaration(node):
            continue
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            stack += [
                one for one in (value if isinstance(value, list) else [value]) if isinstance(one, ast.AST)
            ]


def _is_declaration(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in (
        "parameter",
        "Parameter",
        "Argument",
        "Step",
        "Domain",
        "TypeVar",
        "say",
        "warning",
        "debug",
    )


def choose(package: Path, seed: int, count: int) -> list[Change]:
    """Choose changes at random: rooms by their lines, then a file by its lines, then a change of it."""
    files = {
        str(path.relative_to(package)): len(path.read_text().splitlines())
        for room in ROOMS
        for path in sorted((package / room).rglob("*.py"))
    }
    rng, chosen = random.Random(seed), []
    while len(chosen) < count:
        (file,) = rng.choices(list(files), list(files.values()))
        possible = changes_of(package, file)
        if possible and (change := rng.choice(possible)) not in chosen:
            chosen.append(change)
    return chosen


def try_change(checkout: Path, change: Change, python: str) -> None:
    """Make a change, run the tests of its room, put the line back; note what noticed."""
    path = checkout / "mpiimg" / change.file
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    lines[change.line - 1] = change.after + "\n"
    path.write_text("".join(lines))
    started = time.monotonic()
    try:
        folder = ROOMS[change.file.split("/")[0]]
        for markers in ("not long and not slurm and not tool", "not long and not slurm and tool"):
            remaining = LIMIT - (time.monotonic() - started)
            if remaining < 5 or change.noticed:
                break
            change.noticed = _run(checkout, folder, markers, python, remaining)
    finally:
        path.write_text(text)
        change.seconds = time.monotonic() - started


def _run(checkout: Path, folder: str, markers: str, python: str, limit: float) -> str:
    """Return the first test that fails, "time" where a test hangs, or nothing."""
    words = [python, "-m", "pytest", "-q", "-x", "--color=no", "-p", "no:cacheprovider", "-m", markers]
    process = subprocess.Popen(
        [*words, f"tests/{folder}"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        out, _ = process.communicate()
        return ""
    if process.returncode in (0, 5):
        return ""
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", out, re.M)
    return failed[0] if failed else f"pytest ended with {process.returncode}"


def as_table(changes: list[Change], seed: int) -> str:
    """Return the list as Markdown."""
    survivors = sum(not change.noticed for change in changes)
    head = [
        f"Seed {seed}, {len(changes)} changes, {survivors} not noticed.",
        "",
        "| file | line | change | noticed by | s |",
        "|---|---|---|---|---|",
    ]
    rows = [
        f"| {c.file} | {c.line} | `{c.before.strip()}` to `{c.after.strip()}` | "
        f"{c.noticed or '**nothing**'} | {c.seconds:.0f} |".replace("||", "| |")
        for c in changes
    ]
    return "\n".join([*head, *rows]) + "\n"


def main() -> int:
    """Try changes; return the number that nothing noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    changes = choose(options.checkouts[0] / "mpiimg", options.seed, options.count)
    waiting: queue.SimpleQueue[Change] = queue.SimpleQueue()
    for change in changes:
        waiting.put(change)

    def serve(checkout: Path) -> None:
        while True:
            try:
                change = waiting.get_nowait()
            except queue.Empty:
                return
            try_change(checkout, change, options.python)
            print(
                f"{change.noticed or 'NOTHING':<70} {change.file}:{change.line} {change.after.strip()}",
                flush=True,
            )
            options.out.write_text(as_table(changes, options.seed))

    threads = [threading.Thread(target=serve, args=(checkout.resolve(),)) for checkout in options.checkouts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(not change.noticed for change in changes)


if __name__ == "__main__":
    raise SystemExit(main())
