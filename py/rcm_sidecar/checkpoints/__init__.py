"""Network weights on disk: strict loading of every supported layout, atomic saving."""

from rcm_sidecar.checkpoints.adapters import AdapterLayout, load_adapter, save_adapter
from rcm_sidecar.checkpoints.layouts import Layout
from rcm_sidecar.checkpoints.load import LoadedWeights, load_network
from rcm_sidecar.checkpoints.save import save_network

__all__ = [
    "AdapterLayout",
    "Layout",
    "LoadedWeights",
    "load_adapter",
    "load_network",
    "save_adapter",
    "save_network",
]
