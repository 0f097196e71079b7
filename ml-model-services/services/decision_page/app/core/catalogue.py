"""Titles of movies: from MovieLens' file, for the services know ids alone."""

from __future__ import annotations

import csv
import gzip
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MOST_FOUND = 12
NEW_MOVIE_IDS = 9_000_000_001
"""Ids of movies that are entered on the page: beyond those of the catalogue."""
_ARTICLE_BEHIND = re.compile(r"^(.+), (The|A|An)( \(.*\))?$")
_WORD = re.compile(r"\w+")


class UnreadableLine(Exception):
    """A line of new movies is not written as asked for; holds its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Movie:
    """A movie as people know it."""

    movie_id: int
    title: str
    year: int | None
    genres: tuple[str, ...]

    @property
    def label(self) -> str:
        """Title and year, the article in front.

        >>> Movie(2571, "Matrix, The", 1999, ()).label
        'The Matrix (1999)'
        """
        title = _ARTICLE_BEHIND.sub(r"\2 \1\3", self.title)
        return title if self.year is None else f"{title} ({self.year})"


class Catalogue:
    """Movies by id, and found by the beginnings of the words in their titles."""

    def __init__(self, movies: Iterable[Movie]) -> None:
        self._movies = {movie.movie_id: movie for movie in movies}
        self._words = {movie.movie_id: _words(movie.title) for movie in self._movies.values()}

    def __len__(self) -> int:
        return len(self._movies)

    @classmethod
    def read(cls, path: Path | None) -> Catalogue:
        """Read `movieId,title,year,genres`, gzipped; raises OSError or ValueError. No path: no titles."""
        if path is None:
            return cls(())
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            return cls(_movie(row) for row in csv.DictReader(file))

    def find(self, text: str | None, most: int = MOST_FOUND) -> list[Movie]:
        """Return the movies in whose titles every word of `text` begins a word, short titles first."""
        asked = _words(text or "")
        if not asked:
            return []
        found = [
            self._movies[movie_id]
            for movie_id, words in self._words.items()
            if all(any(word.startswith(part) for word in words) for part in asked)
        ]
        return sorted(found, key=lambda movie: (len(movie.title), movie.title, movie.movie_id))[:most]

    def label(self, movie_id: int) -> str:
        """Return title and year of a movie, or its number."""
        movie = self._movies.get(movie_id)
        return f"Movie {movie_id}" if movie is None else movie.label

    def genres(self, movie_id: int) -> tuple[str, ...]:
        """Return all genres of a movie, as far as they are known."""
        movie = self._movies.get(movie_id)
        return () if movie is None else movie.genres

    def with_movies(self, movies: Iterable[Movie]) -> Catalogue:
        """Return a catalogue that knows some more movies."""
        return Catalogue([*self._movies.values(), *movies])


def _movie(row: Mapping[str, str]) -> Movie:
    return Movie(
        movie_id=int(row["movieId"]),
        title=row["title"],
        year=int(row["year"]) if row["year"] else None,
        genres=tuple(genre for genre in row["genres"].split("|") if genre and not genre.startswith("(")),
    )


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(letter for letter in plain if not unicodedata.combining(letter)))


def read_new_movies(text: str) -> list[Movie]:
    """Return the movies in lines of `title | year | genre, genre`; raises UnreadableLine.

    >>> [movie.label for movie in read_new_movies("The Long Way | 2026 | Drama, Sci-Fi")]
    ['The Long Way (2026)']
    """
    movies: list[Movie] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) > 3 or not parts[0]:
            raise UnreadableLine(number)
        _, year, genres = (*parts, "", "")[:3]
        if year and not year.isdigit():
            raise UnreadableLine(number)
        named = tuple(genre.strip() for genre in genres.split(",") if genre.strip())
        movies.append(Movie(NEW_MOVIE_IDS + len(movies), parts[0], int(year) if year else None, named))
    return movies
