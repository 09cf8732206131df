"""Pieces of `make bench-network`: which networks, which passes over them, and where a pass's time goes."""
