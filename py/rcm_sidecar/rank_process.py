"""A rank of a training job that rank 0 has started: works in step with it, reports only what ends it."""

from __future__ import annotations

import os
import sys
import time
import traceback

import msgspec

from rcm_sidecar.distributed import nodes
from rcm_sidecar.distributed.launch import RankLine
from rcm_sidecar.error_report import error_body
from rcm_sidecar.errors import SidecarError
from rcm_sidecar.jobs import follow_training
from rcm_sidecar.link import JobCancelled

_FAILED = 1
_YIELD_SECONDS = 1.0
"""A broken connection is a RuntimeError or an OSError like others: the process that broke it reports first.

Where a whole machine may be gone, that takes longer to notice.
"""


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
        if isinstance(error, SidecarError) and error.remote is not None:
            os._exit(0)  # the process where it happened reports it
        if isinstance(error, (RuntimeError, OSError)):
            time.sleep(_YIELD_SECONDS if os.environ["GROUP_WORLD_SIZE"] == "1" else nodes.YIELD_SECONDS)
        os.write(task.report, msgspec.json.encode(error_body(error)))
        code = _FAILED
    sys.stderr.flush()
    # gloo's own threads can still run while the interpreter takes itself apart, and then abort the process.
    os._exit(code)
