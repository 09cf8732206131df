"""Answers the contract test of the config: the mirror's JSON Schema, and which documents it accepts."""

import json
import sys
from typing import Any

import msgspec

from rcm_sidecar.config import RunConfig, config_document, parse_config
from rcm_sidecar.errors import ConfigError


def judge(document: dict[str, Any]) -> str | None:
    """None if the document is accepted and comes back unchanged, else why not."""
    try:
        config = parse_config(document)
    except ConfigError as error:
        return error.message
    return None if config_document(config) == document else "it changed"


documents = json.load(sys.stdin)
print(json.dumps({"schema": msgspec.json.schema(RunConfig), "verdicts": [judge(document) for document in documents]}))
