"""GET /docs: the endpoints as a page, made from the OpenAPI document, without scripts or other hosts."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

router = APIRouter()

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color-scheme: light dark }
code { font: 0.9rem ui-monospace, monospace }
h2 { border-top: 1px solid; font-size: 1rem; margin-top: 2rem; padding-top: 1rem }
table { border-collapse: collapse } td { padding: 0.1rem 1rem 0.1rem 0; vertical-align: top }
"""


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    document = request.app.openapi()
    sections = [
        _endpoint(document, method, path, about)
        for path, methods in document["paths"].items()
        for method, about in methods.items()
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>atb_models</title><style>{STYLE}</style><h1>Endpoints</h1>"
        f'<p>{escape(document["info"]["description"])} For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(sections)}"
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return HTMLResponse(page, headers={"content-security-policy": policy})


def _endpoint(document: dict[str, Any], method: str, path: str, about: dict[str, Any]) -> str:
    tags = escape(", ".join(about.get("tags", [])))
    bodies = "".join(_body(document, schema) for schema in _schemas(about))
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code> {tags}</h2>"
        f"<p>{escape(about.get('description', ''))}</p>{bodies}"
    )


def _schemas(about: dict[str, Any]) -> list[str]:
    """The names of the forms that an endpoint's body may have."""
    schema = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return [form["$ref"].rsplit("/", 1)[-1] for form in schema.get("oneOf", [schema]) if "$ref" in form]


def _body(document: dict[str, Any], name: str) -> str:
    schema = document["components"]["schemas"][name]
    needed = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{escape(_kind(value))}<td>{'needed' if field in needed else ''}</tr>"
        for field, value in schema["properties"].items()
    )
    return f"<p>{escape(schema.get('description', ''))}</p><table>{rows}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[several] if one.get("type") != "null"))
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "const" in schema or "enum" in schema:
        return " or ".join(map(json.dumps, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return "list of " + _kind(schema.get("items", {}))
    if "minimum" in schema and schema["minimum"] == schema.get("maximum"):
        return f"{schema['minimum']:g}"
    limits = [f"{word} {schema[key]:g}" for key, word in LIMITS.items() if abs(schema.get(key, HUGE)) < HUGE]
    return " ".join([str(schema.get("type", "anything")), *limits])


HUGE = 2**31  # limits of this size are not shown
LIMITS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
