"""A rank of a training job that rank 0 has started: works in step with it, reports only what ends it."""

from __future__ import annotations

import os
import sys
import traceback

import msgspec

from rcm_sidecar.distributed.launch import RankLine
from rcm_sidecar.error_report import error_body
from rcm_sidecar.jobs import follow_training
from rcm_sidecar.link import JobCancelled

_FAILED = 1


def main(line: bytes) -> int:
    """Run the job of the start line to its end; returns the exit code."""
    task = msgspec.json.decode(line, type=RankLine)
    code = 0
    try:
        follow_training(task)
    except JobCancelled:
        pass
    except BaseException as error:
        traceback.print_exc()
        os.write(task.report, msgspec.json.encode(error_body(error)))
        code = _FAILED
    sys.stderr.flush()
    # gloo's own threads can still run while the interpreter takes itself apart, and then abort the process.
    os._exit(code)
