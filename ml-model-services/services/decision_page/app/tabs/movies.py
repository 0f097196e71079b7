"""Movies: pick some or name a viewer, get a list and why, and rank movies that nobody has rated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from app.core.catalogue import Catalogue, Movie, UnreadableLine, read_new_movies
from app.core.client import Trouble
from app.core.services import Services
from app.presentation import html
from app.tabs.parts import QUIET, NotANumber, Update, optional_id, optional_id_box, said

GENRES = (
    "Action", "Adventure", "Children", "Comedy", "Crime", "Drama", "Fantasy", "Romance", "Sci-Fi", "Thriller"
)  # fmt: skip
FIRST_PICKS = (260, 2571)
NEW_MOVIES = """The Long Orbit | 2026 | Sci-Fi, Adventure
Two Tickets to Lisbon | 2026 | Comedy, Romance
The Last Ledger | 2026 | Crime, Thriller, Drama
Paper Dragons | 2026 | Children, Fantasy"""
WHOLE = "Movies and viewers are MovieLens'; viewers have the numbers 1 to 671."


def request_of(
    viewer: str | None, picked: Sequence[int] | None, count: float, genres: Sequence[str] | None, seen: bool
) -> dict[str, Any]:
    """Return what is asked of the service: a viewer, a history, or both; raises NotANumber."""
    asked: dict[str, Any] = {"k": int(count), "exclude_seen": not seen}
    viewer_id = optional_id(viewer, "Viewer")
    if viewer_id is not None:
        asked["viewer_id"] = viewer_id
    if picked or viewer_id is None:
        asked["history"] = [int(movie) for movie in picked or ()]
    if genres:
        asked["genres"] = list(genres)
    return asked


def new_movie(movie: Movie) -> dict[str, Any]:
    """Return a new movie as the service wants it."""
    return {"movie_id": movie.movie_id, "year": movie.year, "genres": list(movie.genres) or None}


class MoviesTab:
    """The components of the tab, and what happens when they are used."""

    def __init__(self, services: Services, catalogue: Catalogue) -> None:
        self._client = services.movies
        self._catalogue = catalogue
        with gr.Row(elem_classes="split"):
            with gr.Column(scale=2, min_width=300):
                self._add_history()
                self._add_wishes()
            with gr.Column(scale=3, min_width=320):
                self.list = said("movie-list", "Pick movies or name a viewer.")
        self._wire()

    def _add_history(self) -> None:
        gr.Markdown("### Who is it for")
        self.viewer = optional_id_box("Viewer (optional)", "viewer")
        gr.HTML(html.hint(WHOLE))
        self.query = gr.Textbox(
            label="Find movies by title", placeholder="for example: star wars", max_lines=1, elem_id="find"
        )
        self.found = gr.CheckboxGroup([], label="Found: tick what was liked", visible=False, elem_id="found")
        self.picked = gr.Dropdown(
            self._choices(FIRST_PICKS),
            value=[movie for movie, _ in zip(FIRST_PICKS, range(len(self._catalogue)), strict=False)],
            multiselect=True,
            filterable=False,
            label="Liked movies",
            elem_id="picked",
        )

    def _add_wishes(self) -> None:
        with gr.Row():
            self.count = gr.Slider(3, 20, 8, step=1, label="How many", elem_id="movie-count", min_width=140)
            self.genres = gr.Dropdown(
                list(GENRES), multiselect=True, label="Only these genres", elem_id="genres", min_width=140
            )
        self.seen = gr.Checkbox(False, label="Also movies already seen", elem_id="seen")
        self.button = gr.Button("Recommend", variant="primary", elem_id="recommend")
        with gr.Accordion("New movies that nobody has rated", open=False, elem_id="new-movies-part"):
            self.new = gr.Textbox(
                NEW_MOVIES,
                label="One a line: title | year | genres",
                lines=4,
                max_lines=12,
                elem_id="new-movies",
            )
            self.new_button = gr.Button("Rank these", elem_id="rank-new")

    def _wire(self) -> None:
        asked = [self.viewer, self.picked, self.count, self.genres, self.seen]
        self.query.input(
            self.search, [self.query, self.picked], self.found, trigger_mode="always_last",
            **(QUIET | {"show_progress": "hidden"}),
        )  # fmt: skip
        self.found.input(self.pick, [self.found, self.query, self.picked], self.picked, **QUIET)
        gr.on([self.button.click, self.viewer.submit], self.recommend, asked, self.list, **QUIET)
        self.new_button.click(self.rank_new, [*asked, self.new], self.list, **QUIET)

    def _choices(self, movies: Sequence[int]) -> list[tuple[str, int]]:
        return [(self._catalogue.label(movie), movie) for movie in movies]

    def search(self, query: str | None, picked: Sequence[int] | None) -> gr.CheckboxGroup:
        """Show the movies whose titles fit, with those ticked that are picked already."""
        found = self._catalogue.find(query)
        if not found and query and query.strip():
            return gr.CheckboxGroup([], value=[], label="Found: none", visible=True)
        return gr.CheckboxGroup(
            [(movie.label, movie.movie_id) for movie in found],
            value=[movie.movie_id for movie in found if movie.movie_id in (picked or ())],
            label="Found: tick what was liked",
            visible=bool(found),
        )

    def pick(self, ticked: Sequence[int], query: str | None, picked: Sequence[int] | None) -> gr.Dropdown:
        """Take what is ticked, and give up what was shown and is not ticked any more."""
        shown = {movie.movie_id for movie in self._catalogue.find(query)}
        kept = [movie for movie in picked or () if movie not in shown or movie in ticked]
        chosen = list(dict.fromkeys([*kept, *ticked]))
        return gr.Dropdown(self._choices(chosen), value=chosen, multiselect=True)

    def recommend(self, *asked: Any) -> str:
        """Recommend movies, and say why each of them."""
        try:
            return self._listed("/recommend", request_of(*asked), self._catalogue)
        except NotANumber as error:
            return html.trouble(str(error))

    def rank_new(self, *asked: Any) -> str:
        """Rank the movies entered, which nobody has rated."""
        *wishes, text = asked
        try:
            movies = read_new_movies(text or "")
            body = request_of(*wishes)
        except UnreadableLine as error:
            return html.trouble(f"New movies, line {error.number}: write it as title | year | genre, genre.")
        except NotANumber as error:
            return html.trouble(str(error))
        if movies:
            body["movies"] = [new_movie(movie) for movie in movies]
        return self._listed("/recommend_new_movies", body, self._catalogue.with_movies(movies))

    def _listed(self, path: str, body: Mapping[str, Any], catalogue: Catalogue) -> str:
        try:
            reply = self._client.post(path, body)
        except Trouble as trouble:
            return html.trouble(trouble.sentence)
        why: Update = {}
        note = ""
        try:
            if reply["movies"]:
                explanation = self._client.post(f"/decisions/{reply['request_id']}/explain")
                why = {movie["movie_id"]: movie for movie in explanation["movies"]}
        except Trouble as trouble:
            note = html.hint(trouble.sentence)
        return html.movie_list(reply, why, catalogue) + note
