"""Python packages that only some jobs import."""

from __future__ import annotations

from importlib.util import find_spec

from rcm_sidecar.errors import HostError


def require_packages(names: tuple[str, ...], purpose: str) -> None:
    """Refuse to begin without packages that are imported later.

    Args:
        names: As they are imported.
        purpose: What needs them, in the plural.

    Raises:
        HostError: E_PYTHON_PACKAGES.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        hint = "Add them with: rcm-bridge env setup --with media"
        raise HostError("E_PYTHON_PACKAGES", f"{purpose} need {', '.join(missing)}.", hint)
