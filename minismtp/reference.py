"""The configuration reference for people, made from its JSON Schema (layer 2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

_HEAD: Final = """\
# Configuration

Made by `minismtp schema --markdown`; a test keeps it true. Sizes are written `"25MiB"`, durations
`"1h30m"`, networks `"192.0.2.0/24"`; relative paths are relative to the file.
"""
_COMMON: Final = ("use", "name", "on_error", "mode", "timeout", "listeners")


def markdown(document: dict[str, Any]) -> str:
    """Give every table of the configuration with its keys, their defaults and meanings."""
    return "\n".join([_HEAD, *_table("Top level", document, skip=())]) + "\n"


def _table(title: str, node: dict[str, Any], *, skip: tuple[str, ...]) -> Iterator[str]:
    required = node.get("required", ())
    rows, below = [], []
    for name, item in node["properties"].items():
        inner = item.get("items", item)
        if name in skip:
            continue
        if "properties" in inner:
            path = name if title == "Top level" else f"{title.strip('[]`')}.{name}"
            below.append((f"`[[{path}]]`" if "items" in item else f"`[{path}]`", inner))
        elif "oneOf" in inner:
            *known, _ = inner["oneOf"]  # the last stands for plugins that are not known
            below += [(f"Plugin `{one['title']}`", one) for one in known]
        else:
            default = "required" if name in required else f"`{json.dumps(item.get('default', ''))}`"
            meaning = " ".join([item.get("description", ""), _choices(item)]).strip()
            rows.append(f"| `{name}` | {default} | {meaning} |")
    yield f"## {title}\n"
    if title != "Top level" and "description" in node:
        yield f"{node['description']}\n"
    if rows:
        yield "| key | default | meaning |\n| --- | --- | --- |"
        yield "\n".join(rows) + "\n"
    for inner_title, inner_node in below:
        yield from _table(inner_title, inner_node, skip=_COMMON if "Plugin" in inner_title else ())


def _choices(item: dict[str, Any]) -> str:
    values = item.get("enum")
    return f"({', '.join(f'`{value}`' for value in values)})" if values else ""
