"""Compile the kernels for a GPU that is not there and report what ptxas made of them.

    python offline.py <case> ...      prints one JSON line a case

Only the compiler runs (Triton's wheel carries ptxas, cuobjdump and nvdisasm): registers, stack frame, matrix
instructions and where spills are. Needs no device and no driver.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
import triton  # noqa: E402
from cases import inputs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

from rcm_kernels import attention_jvp_portable as portable  # noqa: E402
from rcm_kernels import hopper_launch as hopper  # noqa: E402
from rcm_kernels import split_merge  # noqa: E402
from rcm_kernels.dispatch import hopper_tile, tile_table  # noqa: E402
from rcm_kernels.problem import Problem  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX = re.compile(r"\b(HGMMA|HMMA|UTCHMMA|UTCQMMA|UTCMMA)\b")


class NoDevice:
    """What Triton's launcher asks of a driver, up to the point where it would load the binary."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


def hopper_case(columns, pattern, *, masked=False, split=False, dtype=torch.bfloat16, length=256):
    tile = tile_table()["hopper"][f"{columns}/{pattern}"]
    x, row = torch.zeros(1, 2, length, columns, dtype=dtype), torch.zeros(1, 2, length)
    wide, keys = hopper.describe(x, 64, 64), hopper.describe(x, tile["block_keys"], 64)
    values, store = hopper.describe(x, tile["block_keys"], columns), hopper.describe(x, 64, columns)
    return hopper.attention_jvp_kernel.warmup(
        *(wide, wide, keys, keys, values, values, store, store, *[row] * 6, 0.1),
        *(length % 5 + 1, length, length, length // 9 + 1, length, 2, 7, length, 8, 2, length % 3 + 1),
        D=columns,
        BN=tile["block_keys"],
        NS=tile["stages"],
        HAS_TK=pattern == "full",
        CAUSAL=masked,
        SPLIT=split,
        LAZY=tile["lazy"] if dtype == torch.bfloat16 else 0,
        QREG=tile["share_q"],
        TURNS=tile["turns"],
        RELEASE=tile["release"],
        CR=hopper.CONSUMER_REGISTERS,
        PR=hopper.PRODUCER_REGISTERS,
        num_warps=4,
        maxnreg=hopper.LAUNCH_REGISTERS,
        grid=(1,),
    )


def portable_case(major, dim, pattern="qkv", *, masked=False, length=256):
    tile = tile_table()["triton"][f"{major}/{dim}"]
    x, row = torch.zeros(1, 2, length, dim, dtype=torch.bfloat16), torch.zeros(1, 2, length)
    q, k = portable.describe(x, tile["block_rows"], dim), portable.describe(x, tile["block_keys"], dim)
    return portable.attention_jvp_kernel.warmup(
        *(q, k, k, q, k, k, q, q, row, row, 0.1, length % 5 + 1, length, length, length // 9 + 1, 7),
        D=dim,
        BM=tile["block_rows"],
        BN=tile["block_keys"],
        HAS_TQ="q" in pattern,
        HAS_TK="k" in pattern,
        HAS_TV="v" in pattern,
        MASKED=masked,
        PRECISION="tf32",
        PTX=True,
        num_stages=tile["stages"],
        num_warps=tile["warps"],
        grid=(1,),
    )


CASES = {
    "hopper 128 full": (90, lambda: hopper_case(128, "full")),
    "hopper 128 full split": (90, lambda: hopper_case(128, "full", split=True)),
    "hopper 128 full masked": (90, lambda: hopper_case(128, "full", masked=True)),
    "hopper 128 full fp16": (90, lambda: hopper_case(128, "full", dtype=torch.float16)),
    "hopper 128 constant": (90, lambda: hopper_case(128, "constant")),
    "hopper 64 full split": (90, lambda: hopper_case(64, "full", split=True)),
    "hopper 64 constant": (90, lambda: hopper_case(64, "constant")),
    "portable sm_90a 128": (90, lambda: portable_case("9", 128)),
    "portable sm_90a 128 q": (90, lambda: portable_case("9", 128, "q")),
    "portable sm_90a 64": (90, lambda: portable_case("9", 64)),
    "portable sm_80 128": (80, lambda: portable_case("other", 128)),
    "portable sm_80 64": (80, lambda: portable_case("other", 64)),
    "portable sm_100 128": (100, lambda: portable_case("10", 128)),
    "portable sm_100 64": (100, lambda: portable_case("10", 64)),
}


def variants(kernel, build):
    """How many binaries lengths from 1 to 32760 make of one kernel; divisible and not, equal to 1 and not."""
    kernel.device_caches.clear()
    for length in (1, 7, 16, 257, 4096, 32760):
        build(length)
    return sum(len(cache[0]) for cache in kernel.device_caches.values())


def launches():
    """Run the host side of both kernels with the launch replaced by a compilation: arguments bind and plans fit."""

    def compile_only(kernel):
        run = kernel.run
        kernel.run = lambda *args, **options: run(*args, **{**options, "warmup": True})

    for kernel in (hopper.attention_jvp_kernel, portable.attention_jvp_kernel, split_merge.merge_kernel):
        compile_only(kernel)
    hopper.multiprocessors = lambda device: 132
    done = []
    for shape, pattern, split in (((1, 24, 2304, 2304, 64), "qkv", None), ((2, 3, 200, 300, 96), "q", False)):
        args = inputs(*shape, dtype=torch.bfloat16, pattern=pattern)
        problem = Problem(*shape, 0.1, 0)
        hopper.launch(*args, problem, **hopper_tile(problem, pattern == "qkv"), split=split)
        done.append(["hopper", list(shape)])
        portable.launch(*args, problem, **tile_table()["triton"][f"9/{64 if shape[-1] == 64 else 128}"])
        done.append(["portable", list(shape)])
    return done


def report(binary, shared):
    """Registers and stack bytes of the kernel, its matrix instructions, and spill accesses between those of a loop."""
    usage, listing = disassembled(binary)
    sass = listing.splitlines()
    matrix = [i for i, line in enumerate(sass) if MATRIX.search(line)]
    halves = (matrix[: len(matrix) // 2], matrix[len(matrix) // 2 :])  # two loops: two consumers, or whole and edge
    inside = sum(bool(re.search(r"\b(LDL|STL)\b", line)) for h in halves if h for line in sass[h[0] : h[-1]])
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return {
        "registers": int(registers),
        "stack": int(stack),
        "matrix": len(matrix),
        "waits": sum("WARPGROUP.DEPBAR" in line for line in sass),
        "loop_spills": inside,
        "shared": shared,
    }


def disassembled(binary):
    """(resource usage, machine code) of a compiled kernel as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return _tool("cuobjdump", "--dump-resource-usage", file.name), _tool("nvdisasm", "-c", file.name)


def _tool(name, *arguments):
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    if sys.argv[1:] == ["variants"]:
        driver.set_active(NoDevice(90))
        found = {
            "hopper": variants(hopper.attention_jvp_kernel, lambda n: hopper_case(64, "full", split=True, length=n)),
            "portable": variants(portable.attention_jvp_kernel, lambda n: portable_case("9", 32, length=n)),
        }
        print(json.dumps({"case": "variants", **found}))
        sys.exit()
    if sys.argv[1:] == ["launches"]:
        driver.set_active(NoDevice(90))
        print(json.dumps({"case": "launches", "done": launches()}))
        sys.exit()
    for case in sys.argv[1:] or CASES:
        capability, build = CASES[case]
        driver.set_active(NoDevice(capability))
        portable.attention_jvp_kernel.device_caches.clear()
        compiled = build()
        print(json.dumps({"case": case, **report(compiled.asm["cubin"], compiled.metadata.shared)}), flush=True)
