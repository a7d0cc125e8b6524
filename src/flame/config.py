"""All settings: one frozen section per part, and the one place that says which source wins.

Precedence: command line > environment > file > default. A file is TOML with one table per section; the environment
writes `FLAME_SECTION_FIELD`, the command line `--set section.field=value` or an option of its own. Unknown names and
impossible values raise `ConfigError` with the source, the name, the value and what would be right.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from flame.errors import ConfigError

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
_LONGEST_S = 10 * 365 * 86_400.0
"""Ten years: far beyond what anybody means, and still a number that every clock can add."""

Milliseconds = Annotated[float, Meta(gt=0, le=1e3 * _LONGEST_S)]
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
    cache_ttl_s: Annotated[float, Meta(gt=0, le=_LONGEST_S)] = 300.0
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
    """Where the model runs: auto, cpu, cuda, cuda:0, or on several GPUs: cuda:0,cuda:1 or cuda:all."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Count = 0
    """Threads of one launch on a CPU; 0: all cores divided by `orchestrator.executors`."""
    without: tuple[str, ...] = ()
    """Fusions of the `fused` backend to leave out, for comparison: stack, feed-forward, tokens, head, graph."""
    artifact: str = ""
    """Folder of the built artifact; empty: a folder of the user's cache directory named by the fingerprint."""
    validate: Literal["build", "off"] = "build"
    """`build`: a new engine serves only after its scores agreed with the oracle's; `off`: nothing is compared."""
    allow_code: bool = False
    """Whether a model package may bring a Python module, which runs with the rights of the server."""


class OrchestratorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Profiles, planning, executors and admission (`flame.orchestrator`)."""

    users: tuple[Positive, ...] = (1,)
    """User counts of the profiles to build."""
    candidates: tuple[Positive, ...] = ()
    """Candidate counts of the profiles to build; empty: powers of two from 64 up to the model's limit."""
    policy: Literal["cost", "largest-first", "implicit"] = "cost"
    """How launches are planned: `cost`: the cheapest found by measured cost; `largest-first` and `implicit` (each
    request padded to the largest profile) are the paper's rule and its baseline, for comparison."""
    keep_states: Annotated[int, Meta(ge=0)] = 16
    """Encoded histories kept for requests to come, for each history length of the profiles, least recently used out
    first; memory for them is taken at start. 0: a history is encoded for one request and forgotten."""
    company_us: Annotated[float, Meta(ge=0, le=1e6)] = 200.0
    """Longest wait of a request for others who would share its launch, while its device is busy with another launch; it
    waits only as long as company is expected to come in time to save more than the wait costs. 0: no wait."""
    executors: Positive = 1
    """Launches that run at the same time on each device."""
    one_core: bool = True
    """Whether the threads that launch on a GPU share one core, the idlest at start, where there are four or more: to
    hand Python's lock to another core is dear. For `fused` on one GPU, with several executors: the threads of other
    backends copy or compute, and are never bound."""
    launch_limit_ms: Annotated[float, Meta(ge=0, le=1e3 * _LONGEST_S)] = 10_000.0
    """Longest time of one launch; what takes longer is given up and its executor replaced. 0: no limit."""
    max_in_flight: Positive = 64
    """Requests admitted and not yet answered; one more is refused with `queue_full`. Batch requests are counted with
    interactive ones, and interactive ones by themselves: batch is refused first, and in nobody's way."""
    overload: Literal["refuse", "truncate"] = "refuse"
    """What becomes of a request whose deadline is too near: `refuse`; `truncate`: as many of its first candidates are
    scored as can be in time, and the answer says so, or it is refused where not even the smallest profile can."""
    default_deadline_ms: Annotated[float, Meta(ge=0, le=1e3 * _LONGEST_S)] = 0.0
    """Deadline of a request that brings none; 0: no deadline."""
    timeline_entries: Annotated[int, Meta(ge=0, le=2**24)] = 2**14
    """Launches, and as many requests, that the timeline remembers; about 1 KiB for both. 0: none."""


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and how the server listens (`flame.server`)."""

    host: str = "127.0.0.1"
    http_port: Port = 8000
    """0: any free port, printed at start."""
    grpc_port: Port = 8001
    max_body_bytes: Positive = 16 * 2**20
    """Largest HTTP body and gRPC message taken."""
    drain_s: Annotated[float, Meta(ge=0, le=_LONGEST_S)] = 10.0
    """Longest wait for requests in flight at shutdown; what is left is cut and counted."""
    trace: str = ""
    """File that a trace of the last requests is written to at shutdown; empty: none."""


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
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration from all sources.

    `overrides` maps `section.field` to a value and stands for the command line; text values are read as the
    field's type. `defaults` likewise take the place of the defaults here. Raises `ConfigError`.
    """
    config = _apply(Config(), dict(defaults or {}), "default")
    if file:
        config = _apply(config, _from_file(file), f"file {file}")
    config = _apply(config, _from_environ(os.environ if environ is None else environ), "environment")
    return _apply(config, dict(overrides or {}), "command line")


def _from_file(file: Path) -> dict[str, Any]:
    """The settings of a TOML file by dotted name; what is no table of a section keeps its own name."""
    try:
        content: dict[str, Any] = msgspec.toml.decode(file.read_bytes().removeprefix(codecs.BOM_UTF8))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {file} does not exist") from None
    except OSError as error:
        raise ConfigError(f"configuration file {file} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {file} is not TOML: {error}") from error
    found: dict[str, Any] = {}
    for section, fields in content.items():
        if isinstance(fields, dict) and section in Config.__struct_fields__:
            found |= {f"{section}.{field}": value for field, value in fields.items()}
        else:
            found[section] = fields
    return found


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
    for name, value in settings.items():
        section, _, field = name.partition(".")
        own = getattr(config, section, None) if section in Config.__struct_fields__ else None
        if own is None or field not in own.__struct_fields__:
            raise ConfigError(f"{source}: there is no setting {name!r}; {_suggestion(section)}")
        converted = _convert(value, get_type_hints(type(own), include_extras=True)[field], f"{source}: {name}")
        config = replace(config, **{section: replace(own, **{field: converted})})
    return config


def _suggestion(section: str) -> str:
    sections = {field.name: field.type for field in msgspec.structs.fields(Config)}
    if section in sections:
        return f"{section} has {', '.join(sections[section].__struct_fields__)}"
    return f"sections are {', '.join(sections)}"


def _convert(value: Any, kind: Any, what: str) -> Any:
    """`value` as a setting of type `kind`; text is read as that type, a list from parts between commas."""
    listed = get_origin(kind) is tuple
    given = [part.strip() for part in value.split(",") if part.strip()] if listed and isinstance(value, str) else value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        choices = f"; it is one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else ""
        raise ConfigError(f"{what} is {value!r}: {_in_words(error)}{choices}") from error


_WORDS = {"Expected `int`, got `str`": "not a whole number", "Expected `float`, got `str`": "not a number"}


def _in_words(error: msgspec.ValidationError) -> str:
    """What was wrong with a text, for people who do not think of it as one."""
    return _WORDS.get(str(error), str(error))
