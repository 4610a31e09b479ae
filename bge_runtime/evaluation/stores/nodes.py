"""What LlamaIndex lets an embedder read of a node, from the node's stored form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["embedded_text", "stored_node"]

METADATA_TEMPLATE = "{key}: {value}"
TEXT_TEMPLATE = "{metadata_str}\n\n{content}"
SEPARATOR = "\n"


def stored_node(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the node that a vector store of LlamaIndex keeps in an entry's metadata; `None` for other entries.

    Raises:
        ValueError: There is one, and it is not JSON.
    """
    content = metadata.get("_node_content")
    if content is None:
        return None
    node = json.loads(content)
    if not isinstance(node, dict):
        raise ValueError(f"_node_content is a {type(node).__name__}")
    return node


def embedded_text(node: Mapping[str, Any], text: str | None = None) -> str | None:
    """Return `node.get_content(metadata_mode=MetadataMode.EMBED)` of LlamaIndex; `None` for a node without a text.

    Source: `TextNode.get_content`, `Node.get_content` and `BaseNode.get_metadata_str` in `llama_index.core.schema`.

    Args:
        node: As `to_dict` gives it.
        text: The node's own text, where it is kept apart.
    """
    resource = node.get("text_resource")
    if text is None:
        text = resource.get("text") if isinstance(resource, Mapping) else node.get("text")
    if not isinstance(text, str):
        return None
    metadata = _metadata(node)
    # A Node or a Document keeps blanks around its metadata, a TextNode does not.
    if not isinstance(resource, Mapping) and node.get("class_name") not in ("Node", "Document"):
        metadata = metadata.strip()
    if not metadata:
        return text
    template = node.get("text_template") or TEXT_TEMPLATE
    return str(template.format(content=text, metadata_str=metadata).strip())


def _metadata(node: Mapping[str, Any]) -> str:
    metadata = node.get("metadata") or node.get("extra_info") or {}
    excluded = set(node.get("excluded_embed_metadata_keys") or ())
    template = node.get("metadata_template", METADATA_TEMPLATE)
    separator = node.get("metadata_separator", node.get("metadata_seperator", SEPARATOR))
    rows = [template.format(key=key, value=str(value)) for key, value in metadata.items() if key not in excluded]
    return str(separator.join(rows))
