"""The Python side of rcm-bridge: networks, losses, training and the server that TypeScript drives."""
