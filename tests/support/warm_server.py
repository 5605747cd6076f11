"""What warm.py has forked to run tool after tool: it reads command lines, runs each in turn, and answers."""

import json
import logging
import os
import sys
import tempfile
import warnings

from support.no_syncs import leave_out_syncs

from mpiimg.tools import cli


def main(words: list[str]) -> int:
    """Read folders and command lines as JSON, one a line; answer each with exit status, stdout and stderr."""
    leave_out_syncs()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        folder, tool, *words = json.loads(line)
        os.chdir(folder)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            logging.root.handlers.clear()
            try:
                # What was warned of once is warned of again, as in a process of its own.
                with warnings.catch_warnings():
                    status = cli.main(tool, words)
            except SystemExit as end:
                status = end.code
            sys.stdout.flush()
            sys.stderr.flush()
            texts = [os.pread(file.fileno(), 1 << 24, 0).decode(errors="replace") for file in (out, err)]
        answers.write(json.dumps([int(status or 0), *texts]) + "\n")
        answers.flush()
    return 0
