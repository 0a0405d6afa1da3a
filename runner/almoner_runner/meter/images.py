"""Images in a request: how many there are, and how many of its bytes are theirs.

Pure. An image costs by its size in pixels, up to a most that providers document (`almoner_core.model_facts`), not by
its bytes. So the bytes of an image that lies in the request are no text, and each image counts at the most; one that a
URL or a file's id names counts the same. Only places where the dialect has images are looked at: what looks like one in
a tool's input is text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

_DATA: Final = "data:image/"


@dataclass(frozen=True, slots=True)
class Images:
    """`count` of all; `size` is the bytes of the request that are theirs."""

    count: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Files(Images):
    """Files, of which no byte says how many tokens their pages have."""

    found: tuple[dict[str, Any], ...] = ()


def in_chat(messages: Iterable[Any]) -> Images:
    """Give the images of a chat completion's messages."""
    return _sum(
        _of_url(_inner(part, "image_url", "url"))
        for message in messages
        for part in _parts(message, "content")
        if part.get("type") == "image_url"
    )


def files_in_chat(messages: Iterable[Any]) -> Files:
    """Give the files of a chat completion's messages, as the part of each says them."""
    found = tuple(
        part["file"]
        for message in messages
        for part in _parts(message, "content")
        if part.get("type") == "file" and type(part.get("file")) is dict
    )
    data = [file.get("file_data") for file in found]
    return Files(len(found), sum(len(each) for each in data if type(each) is str), found)


def in_items(items: Iterable[Any]) -> Images:
    """Give the images of a response's input items: in messages, and in outputs of tools."""
    return _sum(
        _of_url(part.get("image_url"))
        for item in items
        for name in ("content", "output")
        for part in _parts(item, name)
        if part.get("type") == "input_image"
    )


def in_messages(messages: Iterable[Any]) -> Images:
    """Give the images of Anthropic's messages: in their content, in results of tools, and in documents of blocks."""
    return _sum(_of_source(block.get("source")) for block in _blocks(messages) if block.get("type") == "image")


def _blocks(messages: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        for block in _parts(message, "content"):
            yield block
            inner = _parts(block, "content") if block.get("type") == "tool_result" else []
            yield from inner
            for document in (block, *inner):
                if document.get("type") == "document":
                    yield from _parts(document.get("source"), "content")


def _parts(holder: Any, name: str) -> list[dict[str, Any]]:
    given = holder.get(name) if type(holder) is dict else None
    return [part for part in given if type(part) is dict] if type(given) is list else []


def _inner(part: dict[str, Any], name: str, inner: str) -> Any:
    value = part.get(name)
    return value.get(inner) if type(value) is dict else value


def _of_url(url: Any) -> int:
    if type(url) is not str or not url.startswith(_DATA):
        return 0
    return len(url.partition(",")[2])


def _of_source(source: Any) -> int:
    if type(source) is not dict or source.get("type") != "base64":
        return 0
    data, kind = source.get("data"), source.get("media_type")
    return len(data) if type(data) is str and type(kind) is str and kind.startswith("image/") else 0


def _sum(sizes: Iterable[int]) -> Images:
    found = list(sizes)
    return Images(len(found), sum(found))
