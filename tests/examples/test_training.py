"""Training examples hold no future, and training on them learns a rule that is there."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from examples.movielens import evaluation, offline, train
from examples.movielens.batches import Sampler, Sampling
from examples.movielens.packing import pack
from examples.movielens.trainer import Recipe, Trainer, loss, pace, settle_untrained, tensors
from flame.engine.models import Climber
from flame.engine.spec import ClimberConfig, ModelSpec
from flame.examples.movielens import split
from flame.examples.movielens.dataset import Dataset
from flame.examples.movielens.schema import TASKS, input_schema
from flame.layout import CANDIDATE_ITEM, EVENT_ACTION, EVENT_AGE, EVENT_ITEM, LENGTHS

SMALL = ClimberConfig(dim=16, layers=1, heads=2, ffn=32, experts=2, expert_hidden=16, expert_dim=8, tower_hidden=8)
SPEC = ModelSpec(name="tiny", version="1", tasks=TASKS, input=input_schema(), climber=SMALL)


@pytest.fixture
def until(taste: Dataset) -> int:
    return split.boundary(taste.events)


def test_examples_hold_the_past_as_history_and_the_future_as_positives(taste: Dataset, until: int) -> None:
    sampling = Sampling(positives=8, negatives=20, forgotten_events=0.3)
    own = split.by_user(split.training(taste.events, until))
    times = {
        (user, int(item)): int(at)
        for user, part in own.items()
        for item, at in zip(part.items, part.timestamps, strict=True)
    }
    sampler = Sampler(taste, SPEC.input, until, sampling, seed=1)
    drawn = [example for batch in sampler.epoch(8) for example in batch]
    assert len(drawn) == len(sampler.own) > 40
    for example in drawn:
        user = next(user for user, row in sampler.rows.items() if row is example.item_rows)
        watched = example.labels[:, 0] == 1
        end = example.history.timestamps.max()
        assert all(end < times[user, int(item)] < until for item in example.candidates[watched])
        assert not set(example.candidates[~watched]) & set(own[user].items)
        assert len(np.unique(example.candidates)) == len(example.candidates)
        np.testing.assert_array_equal(example.labels[watched, 1], example.candidates[watched] % 2 == 0)
        assert not example.labels[~watched].any()


def test_the_same_seed_draws_the_same_examples(taste: Dataset, until: int) -> None:
    first, second = (next(Sampler(taste, SPEC.input, until, Sampling(), seed=3).epoch(4)) for _ in range(2))
    np.testing.assert_array_equal(pack(first, SPEC.input)[0], pack(second, SPEC.input)[0])


def test_packed_examples_read_back(taste: Dataset, until: int) -> None:
    sampling = Sampling(positives=4, negatives=5, forgotten_events=0.0, unknown_items=0.0)
    examples = next(Sampler(taste, SPEC.input, until, sampling, seed=2).epoch(5))
    words, layout = pack(examples, SPEC.input)
    header, events, candidates = layout.views(words)
    for user, example in enumerate(examples):
        every, liked = header[user, LENGTHS : LENGTHS + 2]
        history = example.history
        assert (every, liked) == (len(history.items), int((history.actions >= 4).sum()))
        np.testing.assert_array_equal(events[user, 0, :every, EVENT_ITEM], history.items)
        np.testing.assert_array_equal(events[user, 1, :liked, EVENT_ITEM], history.items[history.actions >= 4])
        assert set(events[user, 1, :liked, EVENT_ACTION]) <= {4, 5}
        assert events[user, 0, every - 1, EVENT_AGE] == 0
        np.testing.assert_array_equal(candidates[user, : len(example.candidates), CANDIDATE_ITEM], example.candidates)


def test_unknown_movies_take_row_zero_as_events_and_as_candidates(taste: Dataset, until: int) -> None:
    sampling = Sampling(positives=4, negatives=5, forgotten_events=0.0, unknown_items=0.5)
    (example,) = next(Sampler(taste, SPEC.input, until, sampling, seed=2).epoch(1))
    words, layout = pack([example], SPEC.input)
    _, events, candidates = layout.views(words)
    ids = np.concatenate([example.history.items, example.candidates])
    rows = np.concatenate([events[0, 0, :, EVENT_ITEM], candidates[0, :, CANDIDATE_ITEM]])
    hidden = np.isin(ids, example.unknown)
    assert hidden.any()
    assert not hidden.all()
    np.testing.assert_array_equal(rows, np.where(hidden, 0, ids))


def test_the_loss_agrees_with_its_definition() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 2), torch.zeros(2, 5, 2)
    labels[0, :2, 0] = labels[0, 0, 1] = labels[1, 3, 0] = 1
    valid = torch.tensor([[True] * 5, [True] * 4 + [False]])
    pointwise, ranking = [], []
    for user in range(2):
        for task in range(2):
            own = []
            for candidate in range(int(valid[user].sum())):
                p = torch.sigmoid(logits[user, candidate, task])
                positive = labels[user, candidate, task] == 1
                pointwise.append(-torch.log(p if positive else 1 - p))
                if positive:
                    rivals = logits[user, valid[user] & (labels[user, :, 0] == 0), task]
                    both = torch.cat([logits[user, candidate, task][None], rivals])
                    own.append(-torch.log_softmax(both, 0)[0])
            ranking.append(torch.stack(own).mean() if own else torch.tensor(0.0))
    expected = torch.stack(pointwise).mean() + 0.7 * torch.stack(ranking).mean()
    torch.testing.assert_close(loss(logits, labels, valid, 0.7), expected)


def test_steps_lower_the_loss_and_the_model_learns_the_rule(taste: Dataset, until: int) -> None:
    torch.manual_seed(0)
    model = Climber(SPEC)
    sampler = Sampler(taste, SPEC.input, until, Sampling(positives=8, negatives=24), seed=0)
    recipe = Recipe(batch=16, learning_rate=1e-2, dropout=0.0)
    trainer = Trainer(model, SPEC.input, recipe, steps=60)
    losses: list[float] = []
    while len(losses) < 60:
        losses += [trainer.step(batch) for batch in sampler.epoch(recipe.batch)][: 60 - len(losses)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    asked = evaluation.questions(taste.events, until)
    measures = evaluation.measure(asked, offline.answers(model, taste, SPEC.input, until))
    assert measures.auc_watch > 0.9


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_the_learning_rate_rises_and_then_falls(steps: int) -> None:
    rates = [pace(step, steps) for step in range(steps)]
    peak = int(np.argmax(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert peak <= 1 + steps / 10


def test_dropout_leaves_no_trace_after_a_step(taste: Dataset, until: int) -> None:
    torch.manual_seed(0)
    model = Climber(SPEC)
    sampler = Sampler(taste, SPEC.input, until, Sampling(), seed=0)
    batch = next(sampler.epoch(4))
    Trainer(model, SPEC.input, Recipe(dropout=0.5), steps=10).step(batch)
    inputs, _ = tensors(batch, SPEC.input)
    twin = Climber(SPEC)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(inputs), twin(inputs), rtol=0, atol=0)


def test_untrained_movies_take_the_vector_of_an_unknown_movie() -> None:
    table = torch.nn.Embedding(6, 3)
    before = table.weight.detach().clone()
    settle_untrained(table, np.array([2, 5, 2]))
    for row in (1, 3, 4):
        torch.testing.assert_close(table.weight[row], before[0])
    for row in (0, 2, 5):
        torch.testing.assert_close(table.weight[row], before[row])


def test_questions_ask_for_every_unseen_movie_and_nothing_else(taste: Dataset, until: int) -> None:
    asked = evaluation.questions(taste.events, until)
    assert asked
    for question in asked:
        assert not set(question.candidates) & set(question.history.items)
        assert len(question.candidates) + len(set(question.history.items)) == len(taste.movies)
        assert question.labels[:, 1].any()
        assert (question.labels[:, 0] >= question.labels[:, 1]).all()


def test_the_committed_recipe_trains_the_committed_shape() -> None:
    assert msgspec.to_builtins(train.SPEC.input) == msgspec.to_builtins(input_schema())
