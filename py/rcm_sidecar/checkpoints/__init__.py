"""Network weights on disk: strict loading of every supported layout, atomic saving."""

from rcm_sidecar.checkpoints.layouts import Layout
from rcm_sidecar.checkpoints.load import LoadedWeights, load_network
from rcm_sidecar.checkpoints.save import save_network

__all__ = ["Layout", "LoadedWeights", "load_network", "save_network"]
