"""Start of the sidecar: `<python> -P -u -X faulthandler py/launch.py`, with one line of JSON on stdin.

With `--rank` it is one of the further processes of a training job, which the sidecar starts; with `--node` what starts
them on a machine other than the first.

Nothing is installed: exactly `py/` and `kernels/` of this package are put on the module path. The guard against
becoming an orphan stands before anything heavy is imported.
"""

import os
import sys
from pathlib import Path

# Read once, when torch loads its OpenMP library. Threads that spin while they wait make a step 20 times slower as soon
# as another process wants one of the cores; sleeping ones cost about 10 % more CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "py"), str(ROOT / "kernels")]

from rcm_sidecar import guard  # noqa: E402

if __name__ == "__main__":
    line = guard.begin()

    if "--rank" in sys.argv:
        from rcm_sidecar import rank_process

        sys.exit(rank_process.main(line))

    if "--node" in sys.argv:
        from rcm_sidecar import node_process

        sys.exit(node_process.main(line))

    from rcm_sidecar import server

    sys.exit(server.main(line))
