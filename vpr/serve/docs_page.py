"""The page at /docs: what the server answers to, without scripts and without a network."""

from html import escape
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "h2{margin-top:2rem}code{font-size:95%}table{border-collapse:collapse}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0}"
)


def docs_page(api: dict[str, Any]) -> str:
    """HTML of an OpenAPI description."""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(api['info']['title'])}</title><style>{STYLE}</style><h1>{escape(api['info']['title'])}</h1>",
        f'<p>{escape(api["info"].get("description", ""))} For programs: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>")
            parts.append(_parameters(operation.get("parameters", [])))
    return "".join(parts) + "</html>\n"


def _parameters(parameters: list[dict[str, Any]]) -> str:
    rows = [
        f"<tr><td><code>{escape(each['name'])}</code><td>{escape(each['in'])}<td>{escape(each.get('description', ''))}"
        for each in parameters
    ]
    return f"<table><tr><th>parameter<th>in<th>what{''.join(rows)}</table>" if rows else ""
