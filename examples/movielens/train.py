"""Trains the small Climber of this example and writes it as a model package.

    python -m examples.movielens.train --output /tmp/movielens

The defaults made the committed package. Everything is seeded; results still differ by rounding between machines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from examples.movielens import evaluation, offline
from examples.movielens.batches import Sampler, Sampling
from examples.movielens.trainer import Recipe, Trainer, settle_untrained
from flame.engine import package
from flame.engine.models import Climber
from flame.engine.spec import ClimberConfig, ModelSpec
from flame.examples.movielens import dataset, download, split
from flame.examples.movielens.dataset import Dataset, Events
from flame.examples.movielens.schema import TASKS, input_schema

SPEC = ModelSpec(
    name="movielens",
    version="1",
    tasks=TASKS,
    input=input_schema(),
    climber=ClimberConfig(
        dim=64,
        layers=2,
        heads=2,
        ffn=256,
        expert_hidden=64,
        expert_dim=32,
        tower_hidden=32,
    ),
)


def train(data: Dataset, until: int, recipe: Recipe, sampling: Sampling, seed: int) -> Climber:
    """A model that has seen nothing but the events before `until`; shows a progress bar."""
    torch.manual_seed(seed)
    model = Climber(SPEC)
    sampler = Sampler(data, SPEC.input, until, sampling, seed)
    steps = recipe.epochs * -(-len(sampler.own) // recipe.batch)
    trainer = Trainer(model, SPEC.input, recipe, steps)
    with _progress() as progress:
        bar = progress.add_task("training", total=steps, loss=float("nan"))
        for _ in range(recipe.epochs):
            for examples in sampler.epoch(recipe.batch):
                progress.update(bar, advance=1, loss=trainer.step(examples))
    assert model.input.items is not None
    settle_untrained(model.input.items, split.training(data.events, until).items)
    return model.eval()


def main() -> None:
    options = _arguments()
    data = dataset.read(download.fetch(options.cache))
    until = split.boundary(data.events, options.training_share)
    recipe = Recipe(
        epochs=options.epochs,
        batch=options.batch,
        learning_rate=options.learning_rate,
        dropout=options.dropout,
        listwise=options.listwise,
    )
    model = train(data, until, recipe, Sampling(), options.seed)
    asked = evaluation.questions(_shown(data.events, options.validate_share), until)
    measures = evaluation.measure(asked, offline.answers(model, data, SPEC.input, until))
    print(f"{measures.users} users: {measures}")
    if options.output:
        package.save(options.output, SPEC, model.state_dict())
        print(f"wrote {options.output}")


def _shown(events: Events, share: float | None) -> Events:
    """The events that evaluation may see: all, or for tuning those before a share of them."""
    return events if share is None else split.training(events, split.boundary(events, share))


def _arguments() -> argparse.Namespace:
    recipe = Recipe()
    parser = argparse.ArgumentParser(prog="python -m examples.movielens.train", description=__doc__)
    parser.add_argument("--output", type=Path, help="folder of the model package; without it nothing is written")
    parser.add_argument("--cache", type=Path, help="folder of the downloaded data (default: the user's cache)")
    parser.add_argument("--epochs", type=int, default=recipe.epochs)
    parser.add_argument("--batch", type=int, default=recipe.batch, help="users of one step")
    parser.add_argument("--learning-rate", type=float, default=recipe.learning_rate)
    parser.add_argument("--dropout", type=float, default=recipe.dropout)
    parser.add_argument("--listwise", type=float, default=recipe.listwise, help="weight of the ranking loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training-share", type=float, default=split.TRAINING_SHARE, help="events to train on")
    parser.add_argument("--validate-share", type=float, help="forget all events after this share; for tuning")
    return parser.parse_args()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


if __name__ == "__main__":
    main()
