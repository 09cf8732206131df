"""Weights on the model hub: locators, the cache that other tools share, and fetching. Only `fetch` needs a package."""

from rcm_sidecar.hub.cache import HubLocator, cached_snapshot, is_hub_locator, parse_locator

__all__ = ["HubLocator", "cached_snapshot", "is_hub_locator", "parse_locator"]
