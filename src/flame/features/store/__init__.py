"""Feature stores, and the one place that picks one by name. Importing this loads none of them."""

from __future__ import annotations

import logging
from pathlib import Path

from flame.config import FeaturesConfig
from flame.errors import ConfigError
from flame.features.store.base import FeatureStore
from flame.schema import InputSchema

_log = logging.getLogger(__name__)

FOLDER = "features"
"""Name of the store beside `model.toml`."""


def open_store(config: FeaturesConfig, schema: InputSchema, model_path: Path | None) -> FeatureStore:
    """The store that `config` names, ready to be read; the caller closes it.

    `model_path` is the model's folder where it has one. A model without a store in it and without a configured one
    gets an empty memory store: all it knows then is what requests bring. Raises `ConfigError`, `StoreUnavailable` or
    `SchemaError`.
    """
    if config.store == "memory":
        return _memory(schema)
    folder = Path(config.path) if config.path else _beside(model_path)
    if folder is None:
        if schema.item or schema.user:
            _log.warning("no feature store: every item and user gets default features; set features.path")
        return _memory(schema)
    if not folder.is_dir():
        raise ConfigError(f"features.path: {str(folder)!r} is not a folder; `flame features import` makes one")
    return _file(folder, schema)


def _beside(model_path: Path | None) -> Path | None:
    if model_path is None:
        return None
    folder = model_path / FOLDER
    return folder if folder.is_dir() else None


def _memory(schema: InputSchema) -> FeatureStore:
    from flame.features.store.memory import MemoryStore

    return MemoryStore(schema)


def _file(folder: Path, schema: InputSchema) -> FeatureStore:
    from flame.features.store.file import FileStore

    return FileStore(folder, schema)
