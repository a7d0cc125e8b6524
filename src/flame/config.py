"""All settings: one frozen section per part, and the one place that says which source wins.

Precedence: command line > environment > file > default. A file is TOML with one table per section; the environment
writes `FLAME_SECTION_FIELD`, the command line `--set section.field=value` or an option of its own. Unknown names and
impossible values raise `ConfigError` with the source, the name, the value and what would be right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from flame.errors import ConfigError

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Milliseconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class FeaturesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Feature store, item cache and packed buffers (`flame.features`)."""

    store: Literal["file", "memory"] = "file"
    """Which store holds item rows, user rows and histories."""
    path: str = ""
    """Folder of the `file` store; empty: the folder `features` beside `model.toml` where there is one."""
    cache: Literal["off", "sync", "async"] = "sync"
    """`sync` waits for missing and expired rows up to the deadline; `async` answers stale or default rows at once."""
    cache_rows: Positive = 1_000_000
    """Rows the item cache can hold; memory is allocated when the server starts."""
    cache_ttl_s: Annotated[float, Meta(gt=0)] = 300.0
    """Seconds after which a cached row is stale."""
    fetch_timeout_ms: Milliseconds = 20.0
    """Longest wait for the store in one request, where its own deadline leaves more."""
    refresh_threads: Positive = 1
    """Threads that fetch rows in the background."""
    numa: Literal["auto", "off"] = "auto"
    """`auto` binds worker threads to the cores of one NUMA node where the machine has several."""


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which backend runs the model and how it is built (`flame.engine`)."""

    backend: str = "auto"
    """A name of `flame.engine.backends`; `auto` takes the fastest that this machine can run."""
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Count = 0
    """Threads of one launch on a CPU; 0: all cores divided by `orchestrator.executors`."""
    artifact: str = ""
    """Folder of the built artifact; empty: a folder of the user's cache directory named by the fingerprint."""
    allow_code: bool = False
    """Whether a model package may bring a Python module, which runs with the rights of the server."""


class OrchestratorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Profiles, planning, executors and admission (`flame.orchestrator`)."""

    users: tuple[Positive, ...] = (1,)
    """User counts of the profiles to build."""
    candidates: tuple[Positive, ...] = ()
    """Candidate counts of the profiles to build; empty: powers of two from 64 up to the model's limit."""
    executors: Positive = 1
    """Launches that run at the same time."""
    max_in_flight: Positive = 64
    """Requests admitted and not yet answered; one more is refused with `queue_full`."""
    default_deadline_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Deadline of a request that brings none; 0: no deadline."""


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and how the server listens (`flame.server`)."""

    host: str = "127.0.0.1"
    http_port: Port = 8000
    """0: any free port, printed at start."""
    grpc_port: Port = 8001
    max_body_bytes: Positive = 16 * 2**20
    """Largest HTTP body and gRPC message taken."""
    drain_s: Annotated[float, Meta(ge=0)] = 10.0
    """Longest wait for requests in flight at shutdown; what is left is cut and counted."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is logged and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a server can be told."""

    features: FeaturesConfig = FeaturesConfig()
    engine: EngineConfig = EngineConfig()
    orchestrator: OrchestratorConfig = OrchestratorConfig()
    server: ServerConfig = ServerConfig()
    log: LogConfig = LogConfig()


def load(
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration from all sources.

    `overrides` maps `section.field` to a value and stands for the command line; text values are read as the
    field's type. Raises `ConfigError`.
    """
    config = _convert(_from_file(file), f"file {file}") if file else Config()
    config = _apply(config, _from_environ(os.environ if environ is None else environ), "environment")
    return _apply(config, dict(overrides or {}), "command line")


def _from_file(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = msgspec.toml.decode(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"configuration file {file} does not exist") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"configuration file {file} is not TOML: {error}") from error
    return content


def _from_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """`FLAME_SERVER_HTTP_PORT=80` as `{"server.http_port": "80"}`; names of no section are left to others."""
    found = {}
    for name, value in environ.items():
        prefix, _, rest = name.partition("_")
        section, _, field = rest.lower().partition("_")
        if prefix == "FLAME" and section in Config.__struct_fields__ and field:
            found[f"{section}.{field}"] = value
    return found


def _apply(config: Config, settings: Mapping[str, Any], source: str) -> Config:
    """`config` with dotted settings laid over it."""
    tree = msgspec.to_builtins(config)
    for name, value in settings.items():
        section, _, field = name.partition(".")
        if field not in tree.get(section, {}):
            raise ConfigError(f"{source}: there is no setting {name!r}; {_suggestion(section, tree)}")
        if isinstance(tree[section][field], tuple) and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        tree[section][field] = value
    return _convert(tree, source)


def _suggestion(section: str, tree: Mapping[str, Any]) -> str:
    known = tree.get(section)
    return f"{section} has {', '.join(known)}" if known else f"sections are {', '.join(tree)}"


def _convert(tree: Mapping[str, Any], source: str) -> Config:
    try:
        return msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
