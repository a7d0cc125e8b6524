"""What the MovieLens model reads and answers: the contract between `prepare`, training and the committed package."""

from __future__ import annotations

from flame.engine.spec import Task
from flame.schema import Field, InputSchema, ItemTable, SequenceSpec

MOVIES = 1682
LIKED = 4
"""The lowest rating, of 1 to 5, that counts as a like."""

GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western", "unknown"),
)
MOST_GENRES = 6
FIRST_YEARS = (1900, 1940, 1950, 1960, 1970, 1980, 1985, 1990, 1992, 1993, 1994, 1995, 1996, 1997, 1998)
"""The first year of each release-year bucket; bucket 0 is an unknown year."""
POPULARITY_BUCKETS = 20
FIRST_AGES = (0, 18, 25, 35, 45, 50, 56)
"""The first age of each age bucket, as MovieLens itself groups them; bucket 0 is an unknown age."""
GENDERS = ("M", "F")
OCCUPATIONS = (
    *("administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare"),
    *("homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman"),
    *("scientist", "student", "technician", "writer"),
)

TASKS = (Task("watch"), Task("like"))
"""`watch`: the user goes on to rate the movie; `like`: with `LIKED` stars or more."""

ITEM_FIELDS = (
    Field("year", "int32", vocabulary=len(FIRST_YEARS) + 1),
    Field("genres", "int32", shape=(MOST_GENRES,), vocabulary=len(GENRES) + 1),
    Field("popularity_bucket", "int32", vocabulary=POPULARITY_BUCKETS),
    Field("popularity", "float32"),
    Field("recent_popularity", "float32"),
    Field("like_share", "float32"),
    Field("mean_rating", "float32"),
)
USER_FIELDS = (
    Field("age", "int32", vocabulary=len(FIRST_AGES) + 1),
    Field("gender", "int32", vocabulary=len(GENDERS) + 1),
    Field("occupation", "int32", vocabulary=len(OCCUPATIONS) + 1),
)


def input_schema() -> InputSchema:
    """The input of the model; the action of an event is its rating, so actions run from 0 (never used) to 5."""
    return InputSchema(
        item_id=ItemTable(vocabulary=MOVIES + 1, dim=32),
        max_history=256,
        max_candidates=2048,
        actions=6,
        item=ITEM_FIELDS,
        user=USER_FIELDS,
        sequences=(
            SequenceSpec("all", limit=128),
            SequenceSpec("liked", kind="actions", actions=(LIKED, 5), limit=128),
        ),
    )
