"""What this machine offers: the body of `ready`. Imports torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from rcm_sidecar.errors import HostError
from rcm_sidecar.protocol import Gpu, Ready

_PACKAGES = ("torch", "numpy", "pyzmq", "msgspec", "safetensors", "triton")


def describe() -> Ready:
    """Import torch and describe it, its devices and the packages that matter.

    Raises:
        HostError: torch cannot be imported (E_PYTHON_PACKAGES).
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        hint = "Install torch in this Python, or let `rcm-bridge env setup` make an environment."
        raise HostError("E_PYTHON_PACKAGES", "Python cannot import torch.", hint) from error
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            gpus.append(Gpu(name=facts.name, memory_bytes=float(facts.total_memory)))
    return Ready(
        torch=str(torch.__version__),  # a TorchVersion, which no encoder knows
        cuda=torch.version.cuda,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        gpus=tuple(gpus),
        packages=_packages(),
    )


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
