"""Texts of a run as they may be shown: what a run folder holds may come from anyone."""

from typing import Any


def visible(text: str, keep: str = "") -> str:
    """The text with escapes for what a terminal would obey, and for what nobody would see.

    Args:
        keep: characters that stay although they are not printable, e.g. the end of a line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def counted(number: float, noun: str) -> str:
    """E.g. "1 step", "2 steps", "1.5 epochs"."""
    digits = number if isinstance(number, int) else f"{number:.6g}"
    return f"{digits} {noun}{'' if number == 1 else 's'}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def all_visible(node: Any) -> Any:
    """A configuration, or the like, with its names and texts made `visible`."""
    if isinstance(node, dict):
        return {all_visible(key): all_visible(value) for key, value in node.items()}
    if isinstance(node, list):
        return [all_visible(item) for item in node]
    return visible(node) if isinstance(node, str) else node
