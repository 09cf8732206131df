"""`hf:OWNER/NAME@REVISION` and where huggingface_hub keeps such a repository; nothing is imported, nothing fetched.

src/weights/hub-cache.ts is the same for Node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rcm_sidecar.errors import WeightsError

_PREFIX = "hf:"
_LOCATOR = re.compile(r"hf:([\w-][\w.-]*/[\w-][\w.-]*)(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?")
_MAIN = "main"
_WEIGHTS = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, slots=True)
class HubLocator:
    """A repository, `OWNER/NAME`, and its revision: a branch, a tag or a commit."""

    repository: str
    revision: str = _MAIN

    def __str__(self) -> str:
        """As a config names it."""
        return f"{_PREFIX}{self.repository}" + ("" if self.revision == _MAIN else f"@{self.revision}")


def is_hub_locator(locator: str) -> bool:
    """Whether it means the hub, right or wrong."""
    return locator.startswith(_PREFIX)


def parse_locator(locator: str) -> HubLocator:
    """The parts of a locator.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND when it is no such locator.
    """
    match = _LOCATOR.fullmatch(locator)
    if match is None:
        hint = "Write hf:OWNER/NAME or hf:OWNER/NAME@REVISION."
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"{locator} names no repository on the hub.", hint)
    return HubLocator(match[1], match[2] or _MAIN)


def cached_snapshot(locator: str, env: Mapping[str, str] = os.environ) -> Path:
    """The folder on this machine that holds the weights of a locator, fetched by this program or another.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, which says how to fetch them.
    """
    wanted = parse_locator(locator)
    folder = repository_folder(cache_folder(env), wanted.repository)
    commit = _commit(folder, wanted.revision)
    snapshot = folder / "snapshots" / commit if commit else None
    if snapshot is None or not _holds_weights(snapshot):
        fetch = f"Fetch it: rcm-bridge weights fetch {wanted}"
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"{locator} is not on this machine.", fetch)
    return snapshot


def cache_folder(env: Mapping[str, str]) -> Path:
    """The cache of huggingface_hub, by the variables it reads."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if env.get(name):
            return Path(os.path.expandvars(env[name])).expanduser()
    if env.get("HF_HOME"):
        return Path(os.path.expandvars(env["HF_HOME"])).expanduser() / "hub"
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def repository_folder(cache: Path, repository: str) -> Path:
    """The folder of one repository in the cache."""
    return cache / f"models--{repository.replace('/', '--')}"


def _commit(folder: Path, revision: str) -> str | None:
    if (folder / "snapshots" / revision).is_dir():
        return revision
    try:
        return (folder / "refs" / revision).read_text("utf-8").strip() or None
    except OSError:
        return None


def _holds_weights(snapshot: Path) -> bool:
    folders = [snapshot, snapshot / "transformer"]
    return any(file.suffix in _WEIGHTS for folder in folders if folder.is_dir() for file in folder.iterdir())
