"""What the demonstration prints: the best movies of each person, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flame.examples.movielens.dataset import Dataset
from flame.examples.movielens.ranking import Ranking
from flame.examples.movielens.schema import LIKED

_TOP = 10
_LATELY = 5


def show_person(ranking: Ranking, data: Dataset, console: Console) -> None:
    """Who it is, what they liked lately, and the movies with the highest `like` score."""
    case = ranking.case
    person = data.people[case.user]
    liked = case.history.items[case.history.actions >= LIKED][-_LATELY:]
    console.print(f"\n[bold]User {case.user}[/bold], {person.age}, {person.gender}, {person.occupation}")
    console.print(f"Liked lately: {'; '.join(str(data.movies[int(item)]) for item in liked)}", highlight=False)
    console.print(_best(ranking, data))


def show_times(rankings: Sequence[Ranking], console: Console) -> None:
    """Milliseconds of every stage of each request; `http` is what the client waited beyond the ranker's total."""
    answers = [ranking.answer for ranking in rankings]
    table = Table(title="\nTime of every stage in ms", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("stage")
    for ranking in rankings:
        table.add_column(f"user {ranking.case.user}\n{len(ranking.candidates)} candidates", justify="right")
    for stage in answers[0]["times_ms"]:
        table.add_row(stage, *(f"{answer['times_ms'][stage]:.2f}" for answer in answers))
    table.add_row("http", *(f"{ranking.waited_ms - ranking.answer['times_ms']['total']:.2f}" for ranking in rankings))
    console.print(table)


def _best(ranking: Ranking, data: Dataset) -> Table:
    case, scores = ranking.case, ranking.answer["scores"]
    later = dict(zip(case.later.items.tolist(), case.later.ratings.tolist(), strict=True))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(justify="right", min_width=2)
    table.add_column(f"the best of {len(ranking.candidates)} movies", no_wrap=True, max_width=26)
    table.add_column("year", min_width=4)
    table.add_column("genres", no_wrap=True, max_width=12)
    table.add_column("like", justify="right", min_width=5)
    table.add_column("watch", justify="right", min_width=5)
    table.add_column("later", min_width=5)
    for place, position in enumerate(ranking.best("like", _TOP), start=1):
        movie = data.movies[ranking.candidates[position]]
        stars = "★" * later[movie.item] if movie.item in later else ""
        shown = [f"{scores[task][position]:.3f}" for task in ("like", "watch")]
        table.add_row(str(place), movie.title, str(movie.year or ""), ", ".join(movie.genres[:2]), *shown, stars)
    return table
