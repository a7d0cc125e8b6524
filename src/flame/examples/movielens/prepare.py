"""Makes the feature store of the example: tables as Parquet, and from them the folder that `flame serve` reads.

    python -m flame.examples.movielens.prepare FOLDER

writes the tables and the store into FOLDER. Item features have counted nothing after the training period, histories
end at the cut of `split`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]

from flame.examples.movielens import columns, dataset, download, split
from flame.examples.movielens.dataset import Dataset
from flame.examples.movielens.schema import MOVIES, input_schema
from flame.features.importer import ImportReport, import_features
from flame.records import History
from flame.schema import InputSchema

STORE = "store"


def prepare(data: Dataset, until: int, folder: Path, schema: InputSchema) -> ImportReport:
    """Writes items.parquet, users.parquet, events.parquet and the folder `STORE` into `folder`, replacing old ones."""
    folder.mkdir(parents=True, exist_ok=True)
    statistics = columns.Statistics.of(split.training(data.events, until), until)
    items = {"id": np.arange(1, MOVIES + 1)} | columns.item_columns(data.movies, statistics)
    users = {"id": np.array(sorted(data.people))} | columns.user_columns(data.people)
    tables = {"items": items, "users": users, "events": _event_columns(split.histories(data.events, until))}
    files = {name: folder / f"{name}.parquet" for name in tables}
    for name, table in tables.items():
        pa_parquet.write_table(_table(table), files[name])
    return import_features(
        schema,
        folder / STORE,
        items=files["items"],
        users=files["users"],
        events=files["events"],
        overwrite=True,
    )


def _event_columns(histories: Mapping[int, History]) -> columns.Columns:
    """Histories, one after the other, as the importer wants events."""
    lengths = [len(history.items) for history in histories.values()]
    return {
        "user": np.repeat(np.array(list(histories), np.int64), lengths),
        "item": np.concatenate([history.items for history in histories.values()]),
        "action": np.concatenate([history.actions for history in histories.values()]),
        "timestamp": np.concatenate([history.timestamps for history in histories.values()]),
    }


def _table(content: columns.Columns) -> pa.Table:
    """An Arrow table; columns of two dimensions become lists."""
    return pa.table({name: column if column.ndim == 1 else list(column) for name, column in content.items()})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flame.examples.movielens.prepare", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    data = dataset.read(download.fetch())
    report = prepare(data, split.boundary(data.events), options.folder, input_schema())
    print(f"{report.items} movies, {report.users} users, {report.events} events in {options.folder / STORE}")


if __name__ == "__main__":
    main()
