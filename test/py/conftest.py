"""For all tests: a slow moment of a shared machine is no failure, so hypothesis sets no time limit on an example."""

from hypothesis import settings

settings.register_profile("rcm", deadline=None)
settings.load_profile("rcm")
