"""Runs of tests do without syncs: no test takes the power from the machine, and a small run waits for 240."""

import os


def leave_out_syncs() -> None:
    """Let files of this process be written back when the system likes."""
    os.fsync = os.fdatasync = lambda descriptor: None
