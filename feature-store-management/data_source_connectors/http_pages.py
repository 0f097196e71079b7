"""Which page of an HTTP API comes after one: by cursor, by number or by the Link header. No network here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from .text_records import at_path


class Pagination(Protocol):
    """What a connection states about its pages."""

    @property
    def pagination(self) -> str: ...  # noqa: D102
    @property
    def cursor_path(self) -> str: ...  # noqa: D102
    @property
    def cursor_parameter(self) -> str: ...  # noqa: D102
    @property
    def page_parameter(self) -> str: ...  # noqa: D102
    @property
    def first_page(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Page:
    """A page as it came: number from 0, URL, Link to the next, JSON and number of records."""

    number: int
    url: httpx.URL
    next_link: str | None
    document: Any
    records: int


def next_page(stated: Pagination, page: Page) -> httpx.URL | None:
    """Return the URL of the next page, None after the last one; ValueError for a cursor that is none."""
    match stated.pagination:
        case "cursor":
            cursor = at_path(page.document, stated.cursor_path, missing=None)
            if cursor is None or cursor == "":
                return None
            if isinstance(cursor, bool) or not isinstance(cursor, str | int):
                raise ValueError(
                    f"{stated.cursor_path} is {type(cursor).__name__}, no text and no whole number"
                )
            return page.url.copy_merge_params({stated.cursor_parameter: cursor})
        case "page":
            if not page.records:
                return None
            return page.url.copy_merge_params({stated.page_parameter: stated.first_page + page.number + 1})
        case "link":
            return page.url.join(page.next_link) if page.next_link else None
        case _:
            return None
