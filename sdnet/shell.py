"""Commands to be typed: quoted for the shell, and settings in them for Hydra."""

import re
import shlex
from collections.abc import Mapping, Sequence

PLAIN = re.compile(r"([A-Za-z_/]|\.\.?/)[\w./:+@-]*", re.ASCII)  # no number, no list, no space


def line(words: Sequence[str], variables: Mapping[str, str | None] | None = None) -> str:
    """A command as one line, after the environment variables that it needs; empty ones are none."""
    given = (variables or {}).items()
    return " ".join([*(f"{k}={shlex.quote(v)}" for k, v in given if v), *map(shlex.quote, words)])


def setting(key: str, value: object) -> str:
    """`key=value` as Hydra's grammar reads it back, whatever a folder is called."""
    text = str(value)
    if not PLAIN.fullmatch(text) or text.lower() in ("null", "true", "false", "nan", "inf"):
        text = re.sub(r"(\\*)'", r"\1\1\\'", text)  # a quote, and what stands before it
        text = re.sub(r"(\\+)$", r"\1\1", text).replace("${", "\\${")
        text = f"'{text}'"
    return f"{key}={text}"
