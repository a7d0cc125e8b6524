"""What the demonstration prints: the best movies of each person, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence

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
    table = Table(title="Time of every stage (ms)", title_justify="left")
    table.add_column("user", justify="right")
    table.add_column("candidates", justify="right")
    stages = list(rankings[0].answer["times_ms"])
    for stage in [*stages, "http"]:
        table.add_column(stage, justify="right")
    for ranking in rankings:
        times = ranking.answer["times_ms"]
        cells = [f"{times[stage]:.2f}" for stage in stages] + [f"{ranking.waited_ms - times['total']:.2f}"]
        table.add_row(str(ranking.case.user), str(len(ranking.candidates)), *cells)
    console.print()
    console.print(table)


def _best(ranking: Ranking, data: Dataset) -> Table:
    case, scores = ranking.case, ranking.answer["scores"]
    later = dict(zip(case.later.items.tolist(), case.later.ratings.tolist(), strict=True))
    table = Table(caption=f"best of {len(ranking.candidates)} movies; the last column is what the user did later")
    table.add_column(justify="right")
    table.add_column("movie")
    table.add_column("genres")
    table.add_column("like", justify="right")
    table.add_column("watch", justify="right")
    table.add_column("later", no_wrap=True)
    for place, position in enumerate(ranking.best("like", _TOP), start=1):
        movie = data.movies[ranking.candidates[position]]
        stars = "★" * later[movie.item] if movie.item in later else ""
        shown = [f"{scores[task][position]:.3f}" for task in ("like", "watch")]
        table.add_row(str(place), str(movie), ", ".join(movie.genres), *shown, stars)
    return table
