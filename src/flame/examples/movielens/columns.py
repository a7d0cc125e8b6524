"""Feature columns of movies and people, as `prepare` imports them and as training reads them.

What a movie's popularity says comes from `Statistics`, sums over events. They are taken over the training period only;
training itself takes a user's own events out of them first (`minus`), because a feature that has counted the rating it
shall predict teaches the model to look it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flame.examples.movielens.dataset import Events, Movie, Person
from flame.examples.movielens.schema import (
    FIRST_AGES,
    FIRST_YEARS,
    GENDERS,
    GENRES,
    LIKED,
    MOST_GENRES,
    MOVIES,
    OCCUPATIONS,
    POPULARITY_BUCKETS,
)

Columns = dict[str, NDArray[np.generic]]

_RECENT_S = 30 * 24 * 3600
_PRIOR_EVENTS = 10.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Sums over events by movie id, each `[MOVIES + 1]`; `recent` counts the last 30 days before `until`."""

    until: int
    events: NDArray[np.float64]
    recent: NDArray[np.float64]
    likes: NDArray[np.float64]
    stars: NDArray[np.float64]

    @classmethod
    def of(cls, events: Events, until: int) -> Statistics:
        """The sums over `events`, none of which may lie at or after `until`."""
        assert not len(events) or events.timestamps.max() < until

        def total(weights: NDArray[np.generic]) -> NDArray[np.float64]:
            return np.bincount(events.items, weights, MOVIES + 1).astype(np.float64)

        recent = events.timestamps >= until - _RECENT_S
        ones = np.ones(len(events))
        return cls(until, total(ones), total(recent), total(events.ratings >= LIKED), total(events.ratings))

    def minus(self, events: Events) -> Statistics:
        """The sums without `events`, which must be among those counted."""
        own = Statistics.of(events, self.until)
        return Statistics(
            self.until,
            self.events - own.events,
            self.recent - own.recent,
            self.likes - own.likes,
            self.stars - own.stars,
        )


def item_columns(movies: Mapping[int, Movie], statistics: Statistics) -> Columns:
    """The item fields of movies 1 to `MOVIES`, in the order of their ids, each `[MOVIES, *shape]`."""
    return description(movies) | popularity(statistics)


def description(movies: Mapping[int, Movie]) -> Columns:
    """What is known of a movie without any event."""
    genres = np.zeros((MOVIES, MOST_GENRES), np.int32)
    years = np.zeros(MOVIES, np.int64)
    for position in range(MOVIES):
        movie = movies[position + 1]
        years[position] = movie.year
        for place, genre in enumerate(movie.genres):
            genres[position, place] = 1 + GENRES.index(genre)
    return {"year": _bucket(years, FIRST_YEARS), "genres": genres}


def popularity(statistics: Statistics) -> Columns:
    """What events say of a movie; counts as logarithms, shares and means drawn to the average of all movies."""
    events, recent, likes, stars = (
        column[1:] for column in (statistics.events, statistics.recent, statistics.likes, statistics.stars)
    )
    total = max(events.sum(), 1.0)
    log_events = np.log1p(events)
    like_share = (likes + _PRIOR_EVENTS * likes.sum() / total) / (events + _PRIOR_EVENTS)
    mean_rating = (stars + _PRIOR_EVENTS * stars.sum() / total) / (events + _PRIOR_EVENTS)
    return {
        "popularity_bucket": np.minimum(log_events * 3, POPULARITY_BUCKETS - 1).astype(np.int32),
        "popularity": (log_events / 4).astype(np.float32),
        "recent_popularity": (np.log1p(recent) / 4).astype(np.float32),
        "like_share": (2 * like_share - 1).astype(np.float32),
        "mean_rating": (mean_rating - 3.5).astype(np.float32),
    }


def user_columns(people: Mapping[int, Person]) -> Columns:
    """The user fields in ascending order of user id, each `[people]`; values that the schema does not list become 0."""
    persons = [people[user] for user in sorted(people)]
    return {
        "age": _bucket(np.array([person.age for person in persons], np.int64), FIRST_AGES),
        "gender": _code([person.gender for person in persons], GENDERS),
        "occupation": _code([person.occupation for person in persons], OCCUPATIONS),
    }


def _bucket(values: NDArray[np.int64], firsts: tuple[int, ...]) -> NDArray[np.int32]:
    """1 + the position of the last first value that is not greater; 0 below all of them."""
    return np.searchsorted(np.array(firsts), values, side="right").astype(np.int32)


def _code(values: list[str], known: tuple[str, ...]) -> NDArray[np.int32]:
    return np.array([1 + known.index(value) if value in known else 0 for value in values], np.int32)
