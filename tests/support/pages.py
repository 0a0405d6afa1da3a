"""Pages of documentation as scripts: what a reader would type, and what the page says will be seen.

A block marked `sh` is typed line by line; the block marked `text` after it has lines that these show, in that order,
among others. `…` in it stands for anything; runs of blanks count as one.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "@@done"


@dataclass(frozen=True, slots=True)
class Block:
    """Lines to type, and what they are said to show."""

    lines: tuple[str, ...]
    shows: str


@dataclass(frozen=True, slots=True)
class Typed:
    """A line that was typed: its exit code, and all it printed."""

    line: str
    code: int
    output: str


def blocks_of(page: str) -> list[Block]:
    """Give the blocks to type, in order."""
    found: list[Block] = []
    typed: tuple[str, ...] = ()
    for kind, body in [*_FENCE.findall(page), ("", "")]:
        if typed:
            found.append(Block(typed, body if kind == "text" else ""))
        typed = tuple(line for line in body.splitlines() if line.strip()) if kind == "sh" else ()
    return found


def sections_of(page: str) -> dict[str, str]:
    """Give the text below each heading of the second level; what stands before the first belongs to ``""``."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip((title.strip() for title in parts[1::2]), parts[2::2], strict=True))}


def judged(blocks: Sequence[Block], typed: Sequence[Typed]) -> None:
    """Demand that every line worked and that what the page shows was shown. Raises AssertionError with the output."""
    rest = list(typed)
    for block in blocks:
        ran, rest = rest[: len(block.lines)], rest[len(block.lines) :]
        assert [each.line for each in ran] == list(block.lines), "a line ended the shell"
        for each in ran:
            assert each.code == 0, f"{each.line}\n{each.output}"
        output = "".join(each.output for each in ran)
        lacks = shown(block.shows, output)
        assert lacks is None, f"{lacks!r} is not shown:\n{output}"
        assert block.shows, f"the page does not say what {block.lines} shows"


def type_in(lines: Sequence[str], *, before: str, cwd: Path, env: Mapping[str, str], seconds: float) -> list[Typed]:
    """Type lines into one bash, after `before`; nothing is there to answer a question."""
    script = [before]
    for line in lines:
        script += [line, f"printf '\\n{_MARK} %d\\n' $?"]
    ended = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", "\n".join(script)],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    parts = re.split(rf"\n{_MARK} (\d+)\n", ended.stdout)
    said, codes = parts[0:-1:2], parts[1::2]
    return [Typed(line, int(code), output) for line, code, output in zip(lines, codes, said, strict=False)]


def shown(expected: str, output: str) -> str | None:
    """Give the first line of the page that the output does not show in its place; None where all are there."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    at = 0
    for line in expected.splitlines():
        wanted = " ".join(line.split())
        if wanted in {"", "…"}:
            continue
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in wanted.split("…")))
        while at < len(lines) and not pattern.fullmatch(lines[at]):
            at += 1
        if at == len(lines):
            return line
        at += 1
    return None
