"""Diffusion: coordinates, time distributions, guidance and samplers. No training, no network code."""
