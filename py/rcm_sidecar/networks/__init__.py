"""Networks by name: `build(name, **overrides)`."""

from rcm_sidecar.networks.registry import Network, build, names
from rcm_sidecar.networks.spec import NetworkSpec
from rcm_sidecar.networks.text_cache import TextCache

__all__ = ["Network", "NetworkSpec", "TextCache", "build", "names"]
