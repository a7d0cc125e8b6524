"""The demonstration: real movies ranked for real people by a real server, over HTTP.

It downloads MovieLens-100K once, prepares a feature store from it, starts `flame serve` on the committed model, asks
for all movies that a person has not seen, and prints the best with the scores and the time of every stage. The
people are from the evaluation: training has seen nothing of what they watched after the cut.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rich.console import Console

from flame.examples.movielens import dataset, download, split
from flame.examples.movielens.dataset import Dataset
from flame.examples.movielens.prepare import STORE, prepare
from flame.examples.movielens.ranking import choose, rank
from flame.examples.movielens.schema import input_schema
from flame.examples.movielens.server import RankClient, serving
from flame.examples.movielens.show import show_person, show_times

PACKAGE = Path(__file__).parent / "package"
"""The trained model of the example."""


def run(keep: bool = False, people: int = 3, console: Console | None = None) -> int:
    """Runs the demonstration for some people; with `keep` it then goes on serving until Ctrl-C. Returns 0.

    Raises `DataUnavailable` without data or network, and `ServerFailed` where the server does not do its part.
    """
    console = console or Console()
    with console.status("MovieLens-100K: downloading (once)"):
        data = dataset.read(download.fetch())
    until = split.boundary(data.events)
    movies, persons, events = len(data.movies), len(data.people), len(data.events)
    console.print(f"MovieLens-100K: {events:,} ratings of {movies:,} movies by {persons} people")
    with tempfile.TemporaryDirectory(prefix="flame-movielens-") as folder:
        began = time.monotonic()
        prepare(data, until, Path(folder), input_schema())
        console.print(f"Feature store: prepared in {time.monotonic() - began:.1f} s")
        status = console.status("Server: loading and building the model")
        status.start()
        try:
            with serving(PACKAGE, Path(folder) / STORE) as client:
                status.stop()
                console.print(f"Server: flame serve listens on {client.url}")
                _rank_and_show(client, data, until, people, console)
                if keep:
                    _keep(client, console)
        finally:
            status.stop()
    return 0


def _rank_and_show(client: RankClient, data: Dataset, until: int, people: int, console: Console) -> None:
    rankings = [rank(client, case) for case in choose(split.cases(data.events, until), people)]
    answer = rankings[0].answer
    console.print(f"Model: {answer['model']} version {answer['version']}, backend {answer['backend']}")
    for ranking in rankings:
        show_person(ranking, data, console)
    console.print("later: the stars they gave after their history ends; neither training nor the server has seen them")
    show_times(rankings, console)


def _keep(client: RankClient, console: Console) -> None:
    """Waits for Ctrl-C."""
    console.print(f"\nServing on {client.url} until Ctrl-C. Try it:")
    body = '{"user": 1, "candidates": [50, 56, 181, 258, 313]}'
    console.print(f"  curl -s {client.url}/v1/rank -d '{body}'", soft_wrap=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("Stopping")
