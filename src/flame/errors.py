"""Every error FLAME raises on purpose, with the status both protocols answer.

FlameError
├── RequestError               the request is wrong; sending it again unchanged cannot help
│   ├── MalformedRequest       not the JSON, protobuf or binary tensor it claims to be
│   ├── BodyTooLarge           more bytes than `server.max_body_bytes`
│   ├── UnknownRoute           no such call here: path and method, or gRPC method
│   ├── UnknownModel           no such model or version here
│   ├── UnknownTask            the model has no output of that name
│   ├── InvalidTensor          wrong name, dtype, shape or byte count of an input tensor
│   ├── InvalidCandidates      no candidates, or ids that cannot be ids
│   ├── TooManyCandidates      more candidates than the model's limit
│   ├── InvalidHistory         columns of unequal length, unknown action, time out of order
│   ├── HistoryTooLong         more events than the model's limit
│   ├── InvalidScenario        a scenario the model was not built with
│   ├── InvalidPriority        neither interactive nor batch
│   └── InvalidFeature         unknown context feature, wrong shape, NaN or infinity
├── RefusedError               the request may be right; this server does not do it now
│   ├── QueueFull              as many requests in flight as admission allows
│   ├── DeadlineExceeded       the deadline has passed, or cannot be met
│   ├── RequestCancelled       the client went away before the work was started
│   ├── ShuttingDown           the server drains
│   └── EngineFailed           no executor is left: all failed, and none could be rebuilt
├── FeatureError               the feature side failed
│   ├── SchemaError            fields that contradict each other or the data
│   └── StoreUnavailable       the feature store cannot be read
├── EngineError                the model side failed
│   ├── PackageError           a model folder with a wrong, missing or extra part
│   ├── BackendUnavailable     a backend that this machine or installation cannot run
│   ├── ArtifactMismatch       a built artifact that does not fit this model or machine
│   ├── ValidationFailed       an engine whose scores are not the oracle's
│   └── ExecutionError         a launch failed
│       └── InvalidLaunch      an engine refused a launch for what it was given
└── ConfigError                a setting that is unknown or has an impossible value
"""

from __future__ import annotations

from copy import copy
from typing import ClassVar, Self


class FlameError(Exception):
    """Base of all errors raised on purpose; owns its HTTP status and gRPC code.

    The message of a `FlameError` is shown to the client, so it names the value that was wrong and what to
    do, and never a secret or a path of the server. `kind` is the word metrics and JSON answers use.

    Values given after the message are put into its `{}` when somebody reads it: an overloaded server refuses more
    than it explains.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"
    kind: ClassVar[str] = "internal"
    features_lost: bool = False
    """Whether a launch that was given up may still read the features of the request: then nobody may write there again,
    nor free the memory."""

    def with_lost_features(self) -> Self:
        """The same error for a request whose `features_lost`."""
        lost = copy(self)
        lost.features_lost = True
        return lost

    def __str__(self) -> str:
        message, *values = self.args or ("",)
        try:
            return str(message).format(*values) if values else str(message)
        except (LookupError, ValueError):  # no template, but somebody's own arguments
            return " ".join([str(argument) for argument in self.args])


class RequestError(FlameError):
    """The request is wrong."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"
    kind = "invalid_request"


class MalformedRequest(RequestError):
    """Bytes that are not the JSON, protobuf or binary tensors they claim to be."""

    kind = "malformed_request"


class BodyTooLarge(RequestError):
    """More bytes than the server takes."""

    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"
    kind = "body_too_large"


class UnknownRoute(RequestError):
    """No such call: a path and method this server does not have."""

    http_status = 404
    grpc_code = "UNIMPLEMENTED"
    kind = "unknown_route"


class UnknownModel(RequestError):
    """No such model, or no such version of it."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    kind = "unknown_model"


class UnknownTask(RequestError):
    """The model has no output of that name."""

    kind = "unknown_task"


class InvalidTensor(RequestError):
    """An input tensor with a wrong name, dtype, shape or byte count."""

    kind = "invalid_tensor"


class InvalidCandidates(RequestError):
    """An empty candidate list, or one that does not hold ids."""

    kind = "invalid_candidates"


class TooManyCandidates(RequestError):
    """More candidates than the model's limit."""

    kind = "too_many_candidates"


class InvalidHistory(RequestError):
    """History columns that do not fit each other or the model."""

    kind = "invalid_history"


class HistoryTooLong(RequestError):
    """More history events than the model's limit."""

    kind = "history_too_long"


class InvalidScenario(RequestError):
    """A scenario the model was not built with."""

    kind = "invalid_scenario"


class InvalidPriority(RequestError):
    """A priority that does not exist."""

    kind = "invalid_priority"


class InvalidFeature(RequestError):
    """An unknown context feature, a wrong shape, or a value that is not finite."""

    kind = "invalid_feature"


class RefusedError(FlameError):
    """The server does not do the request now."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    kind = "refused"


class QueueFull(RefusedError):
    """As many requests are in flight as admission allows."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    kind = "queue_full"


class DeadlineExceeded(RefusedError):
    """The deadline has passed, or cannot be met any more."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"
    kind = "deadline_exceeded"


class RequestCancelled(RefusedError):
    """The client went away before the work was started."""

    http_status = 499
    grpc_code = "CANCELLED"
    kind = "cancelled"


class ShuttingDown(RefusedError):
    """The server drains and takes nothing new."""

    kind = "shutting_down"


class EngineFailed(RefusedError):
    """Every executor failed and none could be rebuilt; the process has to be started anew."""

    kind = "engine_failed"


class FeatureError(FlameError):
    """The feature side failed."""

    kind = "feature_error"


class SchemaError(FeatureError, ValueError):
    """Fields that contradict each other or the data."""

    kind = "schema_error"


class StoreUnavailable(FeatureError):
    """The feature store cannot be read."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    kind = "store_unavailable"


class EngineError(FlameError):
    """The model side failed."""

    kind = "engine_error"


class PackageError(EngineError, ValueError):
    """A model folder with a wrong, missing or extra part."""

    kind = "package_error"


class BackendUnavailable(EngineError):
    """A backend that this machine or installation cannot run."""

    kind = "backend_unavailable"


class ArtifactMismatch(EngineError):
    """A built artifact that does not fit this model or machine."""

    kind = "artifact_mismatch"


class ValidationFailed(EngineError):
    """An engine whose scores are not the oracle's, and which therefore does not serve."""

    kind = "validation_failed"


class ExecutionError(EngineError):
    """A launch failed."""

    kind = "execution_error"


class InvalidLaunch(ExecutionError):
    """An engine refused a launch for what it was given; the engine and the launch buffers are sound."""

    kind = "invalid_launch"


class ConfigError(FlameError, ValueError):
    """A setting that is unknown or has an impossible value."""

    kind = "config_error"
