"""An exception as the message that crosses the border: a stable code and a typed chain with frames."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

from rcm_sidecar.errors import SidecarError
from rcm_sidecar.protocol import ErrorBody, ErrorLink, Frame

_MAX_LINKS = 16
_MAX_FRAMES = 64
_MAX_TEXT = 20_000


def error_body(error: BaseException, *, step: int | None = None, code: str = "E_TRAINING") -> ErrorBody:
    """Describe an exception.

    Args:
        error: Any exception; a SidecarError brings its own code, hint and details. One with a `remote` body, of
            another process, has that body's frames first.
        step: Step it happened at, if any.
        code: Code of an exception that brings none.
    """
    remote = error.remote if isinstance(error, SidecarError) else None
    coded = next((link for link in _chain(error) if isinstance(link, SidecarError)), None)
    top = error if isinstance(error, SidecarError) else None
    details: Any = getattr(top, "details", None)
    return ErrorBody(
        code=top.code if top else (coded.code if coded else code),
        message=_short(str(error)) or type(error).__name__,
        hint=top.hint if top else (coded.hint if coded else None),
        chain=(*(() if remote is None else remote.chain), *(_link(link) for link in _chain(error))),
        traceback=_short("".join(traceback.format_exception(error)), keep_end=True)
        if remote is None
        else remote.traceback,
        step=step,
        details=_plain(details) if isinstance(details, dict) else {},
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, then its cause (else its context unless suppressed), then members of groups; each once."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting and len(seen) < _MAX_LINKS:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if link.__cause__ is not None:
            waiting.append(link.__cause__)
        elif link.__context__ is not None and not link.__suppress_context__:
            waiting.append(link.__context__)
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)


def _link(error: BaseException) -> ErrorLink:
    stack = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    frames = tuple(Frame(file=f.filename, line=f.lineno or 0, function=f.name, text=f.line or "") for f in stack)
    return ErrorLink(type=name, message=_short(str(error)), frames=frames)


def _short(text: str, keep_end: bool = False) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    return "..." + text[-_MAX_TEXT:] if keep_end else text[:_MAX_TEXT] + "..."


def _plain(value: Any) -> Any:
    """Only what msgpack carries: anything else becomes its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
