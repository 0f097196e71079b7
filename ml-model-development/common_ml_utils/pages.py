"""A page said once, written as self-contained HTML and as Markdown: text, facts, tables, notes and plots.

Everything shown is escaped, and nothing is loaded from elsewhere: images are embedded in the HTML and stand
beside the Markdown.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

STYLE = Path(__file__).with_name("templates") / "page.css"
NUMBER = re.compile(r"^[<>~+-]?\d[\d,.]*\s?%?(\s.*)?$")
DASH = "–"
SHORT_CELL = 26
"""Characters up to which a cell is kept in one line."""
SCREEN_SHARE = 0.75
"""Width of a plot on the page, in CSS pixels a pixel of the image: sharp on fine screens, small on all."""


class Block(Protocol):
    """A part of a section."""

    def html(self) -> str:
        """Return the part as HTML."""

    def markdown(self, plots: str) -> str:
        """Return the part as Markdown; `plots` is the folder of images beside it."""


@dataclass(frozen=True)
class Text:
    """A paragraph; `caption` makes it small, as below a table."""

    text: str
    caption: bool = False

    def html(self) -> str:
        """Return a paragraph."""
        return f"<p{' class=caption' if self.caption else ''}>{html.escape(self.text)}</p>"

    def markdown(self, plots: str) -> str:
        """Return a paragraph."""
        return _mark(self.text)


@dataclass(frozen=True)
class Note:
    """A summary that stands out: good news, a warning, bad news, or neither."""

    kind: Literal["good", "warning", "bad", "plain"]
    lines: Sequence[str]

    def html(self) -> str:
        """Return a coloured box."""
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.lines)
        return f'<div class="note {self.kind}">{lines}</div>'

    def markdown(self, plots: str) -> str:
        """Return a quotation."""
        return "\n>\n".join(f"> {_mark(line)}" for line in self.lines)


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]

    def html(self) -> str:
        """Return a list."""
        return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in self.items)}</ul>"

    def markdown(self, plots: str) -> str:
        """Return a list."""
        return "\n".join(f"- {_mark(item)}" for item in self.items)


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    rows: Mapping[str, Any]

    def html(self) -> str:
        """Return a table without a head."""
        rows = "".join(
            f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(shown(value))}</td></tr>"
            for name, value in self.rows.items()
        )
        return f'<table class="facts"><tbody>{rows}</tbody></table>'

    def markdown(self, plots: str) -> str:
        """Return a table of two columns."""
        return _markdown_table(
            ["", ""], [[str(name), shown(value)] for name, value in self.rows.items()], set()
        )


@dataclass(frozen=True)
class Table:
    """Rows under named columns; columns that hold only numbers are set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def html(self) -> str:
        """Return a table that scrolls where it is too wide."""
        numeric = self._numeric()
        head = "".join(
            f"<th{' class=number' if i in numeric else ''}>{html.escape(name)}</th>"
            for i, name in enumerate(self.columns)
        )
        body = "".join(f"<tr>{self._cells(row, numeric)}</tr>" for row in self.rows)
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def _cells(self, row: Sequence[Any], numeric: set[int]) -> str:
        cells = []
        for i, cell in enumerate(row):
            text = shown(cell)
            kind = "number" if i in numeric else "short" if len(text) <= SHORT_CELL else "long"
            cells.append(f"<td class={kind}>{html.escape(text)}</td>")
        return "".join(cells)

    def markdown(self, plots: str) -> str:
        """Return a table."""
        return _markdown_table(
            self.columns, [[shown(cell) for cell in row] for row in self.rows], self._numeric()
        )

    def _numeric(self) -> set[int]:
        texts = [[shown(cell) for cell in row] for row in self.rows]
        return {
            i
            for i in range(len(self.columns))
            if any(row[i] != DASH for row in texts)
            and all(NUMBER.match(row[i]) or row[i] == DASH for row in texts)
        }


@dataclass(frozen=True)
class Plots:
    """PNG images by name, each with what it shows; in Markdown they stand as files in a folder."""

    images: Mapping[str, bytes]
    captions: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """Return the images, embedded, side by side where there is room."""
        return f'<div class="plots">{"".join(self._figure(name) for name in self.images)}</div>'

    def _figure(self, name: str) -> str:
        caption = self.captions.get(name, "")
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        content = base64.b64encode(self.images[name]).decode()
        label = html.escape(caption or name.replace("_", " "))
        width = round(_png_width(self.images[name]) * SCREEN_SHARE)
        size = f' width="{width}"' if width else ""
        return f'<figure><img alt="{label}"{size} src="data:image/png;base64,{content}">{below}</figure>'

    def markdown(self, plots: str) -> str:
        """Return references to the images."""
        return "\n\n".join(
            f"![{_mark(self.captions.get(name, name.replace('_', ' ')))}]({plots}/{name}.png)"
            for name in self.images
        )


@dataclass(frozen=True)
class Links:
    """Where to look next: text -> a file beside the page."""

    targets: Mapping[str, str]

    def html(self) -> str:
        """Return the links in one line."""
        links = (
            f'<a href="{html.escape(target, quote=True)}">{html.escape(text)}</a>'
            for text, target in self.targets.items()
        )
        return f"<p>{' · '.join(links)}</p>"

    def markdown(self, plots: str) -> str:
        """Return the links in one line."""
        return " · ".join(f"[{_mark(text)}]({target})" for text, target in self.targets.items())


@dataclass(frozen=True)
class Section:
    """A heading with its parts."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A title, what stands above all sections, and the sections."""

    title: str
    subtitle: str
    summary: Sequence[Block]
    sections: Sequence[Section]
    footer: str = ""

    def html(self) -> str:
        """Return one self-contained document."""
        body = [f"<h1>{html.escape(self.title)}</h1>"]
        if self.subtitle:
            body.append(f'<p class="subtitle">{html.escape(self.subtitle)}</p>')
        body += [block.html() for block in self.summary]
        for section in self.sections:
            body.append(f"<section><h2>{html.escape(section.title)}</h2>")
            body += [block.html() for block in section.blocks]
            body.append("</section>")
        if self.footer:
            body.append(f"<footer>{html.escape(self.footer)}</footer>")
        return (
            '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light">'
            f"<title>{html.escape(self.title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style></head>\n"
            f"<body>\n{chr(10).join(body)}\n</body>\n</html>\n"
        )

    def markdown(self, plots: str = "plots") -> str:
        """Return the page as Markdown whose images are files of the folder `plots`."""
        parts = [f"# {_mark(self.title)}"]
        if self.subtitle:
            parts.append(_mark(self.subtitle))
        parts += [block.markdown(plots) for block in self.summary]
        for section in self.sections:
            parts.append(f"## {_mark(section.title)}")
            parts += [block.markdown(plots) for block in section.blocks]
        if self.footer:
            parts += ["---", _mark(self.footer)]
        return "\n\n".join(parts) + "\n"


def _png_width(content: bytes) -> int:
    """Return the pixels from left to right, 0 where the content is too short to say."""
    return int.from_bytes(content[16:20], "big") if content[12:16] == b"IHDR" else 0


def shown(value: Any) -> str:
    """Return a value as people read it; nothing known is a dash.

    >>> [shown(value) for value in (0.12345, 12345, None, "text")]
    ['0.1235', '12,345', '–', 'text']
    """
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: set[int]) -> str:
    rule = ["--:" if i in numeric else "---" for i in range(len(columns))]
    lines = [[_mark(name) for name in columns], rule, *([_mark(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mark(text: str) -> str:
    """Escape what Markdown or HTML inside it would read as markup."""
    escaped = html.escape(text, quote=False)
    for character in ("\\", "`", "*", "[", "|"):
        escaped = escaped.replace(character, f"\\{character}")
    return escaped.replace("\n", " ")
