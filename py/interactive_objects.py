"""Python objects by number, for `rcm-bridge/interactive`: requests and answers are JSON text.

pythonia loads this file in a process of its own. Only text crosses its channel, because one NaN there ends the
Node side (spec/bridge.md section 2.3). Values that JSON has no word for travel as `{"$": kind, "v": ...}`.
"""

from __future__ import annotations

import base64
import importlib
import json
import math
import traceback
from typing import Any

MAX_SAFE_INTEGER = 2**53 - 1
MAX_ELEMENTS = 65_536


def encode(value: Any) -> Any:
    """A plain value as JSON data; raises TypeError for anything that has no plain form."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_SAFE_INTEGER else {"$": "int", "v": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$": "float", "v": _name_of(value)}
    if isinstance(value, bytes | bytearray):
        return {"$": "bytes", "v": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple | set | frozenset):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"$": "map", "v": [[encode(key), encode(item)] for key, item in value.items()]}
    return _encode_array(value)


def _name_of(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _encode_array(value: Any) -> Any:
    to_list = getattr(value, "tolist", None)
    count = getattr(value, "numel", None) or getattr(value, "size", None)
    size = count() if callable(count) else count
    if to_list is None or not isinstance(size, int):
        raise TypeError(f"a {type(value).__name__} has no plain value; ask for its text")
    if size > MAX_ELEMENTS:
        raise TypeError(f"{size} elements are too many to copy (at most {MAX_ELEMENTS}); take a part first")
    return encode(to_list())


class Objects:
    """Keeps what was looked up under a number until it is released."""

    def __init__(self) -> None:
        """Start with no objects."""
        self._kept: dict[int, Any] = {}
        self._last = 0

    def handle(self, request_text: str) -> str:
        """Answer one request `{"op", ...}`; errors come back as data with type, message and frames."""
        try:
            request = json.loads(request_text)
            return json.dumps({"ok": self._answer(request)}, allow_nan=False)
        except Exception as error:  # whatever user code raises is the answer
            return json.dumps({"error": describe_error(error)})

    def _answer(self, request: dict[str, Any]) -> Any:
        match request["op"]:
            case "import":
                return self._keep(importlib.import_module(request["name"]))
            case "get":
                return self._keep(getattr(self._kept[request["ref"]], request["name"]))
            case "item":
                return self._keep(self._kept[request["ref"]][self._decode(request["key"])])
            case "call":
                arguments = [self._decode(item) for item in request["args"]]
                keywords = {name: self._decode(item) for name, item in request["kwargs"].items()}
                return self._keep(self._kept[request["ref"]](*arguments, **keywords))
            case "value":
                return encode(self._kept[request["ref"]])
            case "text":
                return repr(self._kept[request["ref"]])
            case "release":
                self._kept.pop(request["ref"], None)
                return None
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")

    def _keep(self, value: Any) -> int:
        self._last += 1
        self._kept[self._last] = value
        return self._last

    def _decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        match value.get("$"):
            case "ref":
                return self._kept[value["v"]]
            case "float":
                return float(value["v"])
            case "int":
                return int(value["v"])
            case "bytes":
                return base64.b64decode(value["v"])
            case _:
                return {key: self._decode(item) for key, item in value["v"]}


def describe_error(error: BaseException) -> dict[str, Any]:
    """Type, message and the innermost frames of an exception, without this file's own."""
    frames = [
        {"file": frame.filename, "line": frame.lineno or 0, "function": frame.name, "text": frame.line or ""}
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__
    ]
    return {"type": type(error).__name__, "message": str(error), "frames": frames}


def open_objects() -> Objects:
    """A fresh table of objects; pythonia reaches it as one reference."""
    return Objects()
