"""Text encoders, VAEs, and files of pictures and videos, beside which the networks work.

Only what this package's modules import lazily needs the media packages (diffusers, transformers, av, ...).
"""
