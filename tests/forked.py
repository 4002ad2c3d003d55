"""Run something in a forked process, as a ZeroGPU worker is one."""

from __future__ import annotations

import os
import pickle
import select
import signal


def in_fork(function, seconds=60):
    """What a function returns in a fork of this process; a child that hangs is killed."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writes, pickle.dumps(function()))
        finally:
            os._exit(0)
    os.close(writes)
    try:
        assert select.select([reads], [], [], seconds)[0], "the forked process hangs"
        answer = os.read(reads, 1 << 16)
        assert answer, "the forked process failed"
        return pickle.loads(answer)
    finally:
        os.close(reads)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
