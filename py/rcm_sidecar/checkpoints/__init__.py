"""Network weights on disk."""
