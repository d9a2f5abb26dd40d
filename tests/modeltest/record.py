"""The JSON document of a run: settings, environment and results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from atb_models import __version__
from atb_models.errors import CheckpointError, ConfigError
from atb_models.files import written_whole
from atb_models.json_file import read_json
from modeltest.command.cases import Options, Run

Kind = Literal["accuracy", "performance"]
SCHEMA = 1
NEEDED = {"accuracy": ("set", "n", "correct", "accuracy", "data", "questions"), "performance": ("cases",)}
PARTS = ("run", "options", "environment", "results")


def write_record(
    path: Path, kind: Kind, run: Run, options: Options, environment: dict[str, Any], results: dict[str, Any]
) -> None:
    """Write the document; environment: from `environment.facts`. README.md describes the results of each kind."""
    document = {
        "schema": SCHEMA,
        "kind": kind,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modeltest": __version__,
        "run": _plain(dataclasses.asdict(run)),
        "options": _plain(dataclasses.asdict(options)),
        "environment": environment,
        "results": results,
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    with written_whole(path) as temporary:
        # of a path that is no UTF-8: backslashes are JSON's own way to write what has no character
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_record(path: Path) -> dict[str, Any]:
    """The document in `path`. Raises ConfigError for a file that is none."""
    if not path.is_file():
        raise ConfigError(f"{path} is no file; name the JSON file of a run, which is below outputs/results")
    try:
        document = read_json(path)
    except CheckpointError as error:
        raise ConfigError(f"no result of modeltest: {error}") from None
    if document.get("kind") not in NEEDED or not all(isinstance(document.get(part), dict) for part in PARTS):
        raise ConfigError(f"{path} is no result of modeltest: it lacks kind, {', '.join(PARTS[:-1])} or {PARTS[-1]}")
    if document.get("schema") != SCHEMA:
        raise ConfigError(f"{path} has schema {document.get('schema')!r}, this modeltest reads {SCHEMA}; run it again")
    if missing := [name for name in NEEDED[document["kind"]] if name not in document["results"]]:
        raise ConfigError(f"{path} is incomplete: its results lack {', '.join(missing)}; run it again")
    return document


def quantization(record: Mapping[str, Any]) -> str | None:
    """The method that quantised a run's weights; None: floats. Older results have the option alone."""
    found: str | None = record["environment"].get("quantization", record["options"].get("quantize"))
    return found


def cache_type(record: Mapping[str, Any]) -> str | None:
    """How a run kept keys and values; None: in its data type, as all older results did."""
    found: str = record["options"].get("kv_dtype", "auto")
    return None if found == "auto" else found


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """With paths as texts; JSON has tuples as lists."""
    return {
        name: _plain(value) if isinstance(value, dict) else str(value) if isinstance(value, Path) else value
        for name, value in values.items()
    }
