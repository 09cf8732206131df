"""Prompts as the published pipelines treat them, and what they use as the negative one."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from rcm_sidecar.encoders.model_folder import FamilyName
from rcm_sidecar.errors import ConfigError

NEGATIVE_PROMPTS: Mapping[FamilyName, str | None] = {
    # wan2.1.md section 9.7: the published constant, full-width commas and all.
    "wan2.1": (
        "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
        "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
        "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
    ),
    # cosmos-predict2.md section 5: zeros, not the embedding of a text.
    "cosmos-predict2": None,
}
"""The model's own negative prompt; None where its negative branch gets zeros."""

_TEXT = "text:"
_SPACES = re.compile(r"\s+")


def negative_prompt(setting: str, family: FamilyName) -> str | None:
    """The prompt whose states the negative branch of guidance gets; None for zeros.

    Args:
        setting: Of `teacher.negative`: default, zeros, empty (no words) or text:...
        family: Whose default.

    Raises:
        ConfigError: E_CONFIG_VALUE.
    """
    if setting == "default":
        return NEGATIVE_PROMPTS[family]
    if setting == "zeros":
        return None
    if setting == "empty":
        return ""
    if setting.startswith(_TEXT):
        return setting.removeprefix(_TEXT)
    hint = "Use default, zeros, empty or text:..."
    raise ConfigError("E_CONFIG_VALUE", f"teacher.negative {setting!r} is no negative prompt.", hint)


def cleaned(prompt: str, family: FamilyName) -> str:
    """The text that is tokenised: Wan mends it first (wan2.1.md section 7.3), Cosmos-Predict2 takes it as it is."""
    if family != "wan2.1":
        return prompt
    import ftfy  # one of the media packages

    mended: str = ftfy.fix_text(prompt)
    return _SPACES.sub(" ", html.unescape(html.unescape(mended)).strip()).strip()
