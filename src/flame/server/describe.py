"""What the server says of itself and of its model, in the words of the Open Inference Protocol.

Plain dictionaries: HTTP sends them as JSON, gRPC as messages with the same field names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import flame
from flame.engine.spec import ModelSpec
from flame.server.signature import Signature, TensorSpec

EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics", "parameters")


def server() -> dict[str, Any]:
    """Server metadata."""
    return {"name": "flame", "version": flame.__version__, "extensions": EXTENSIONS}


def model(spec: ModelSpec, signature: Signature) -> dict[str, Any]:
    """Model metadata: tensors with all dimensions, users first; -1 is a size that the request chooses."""
    return {
        "name": spec.name,
        "versions": [spec.version],
        "platform": f"flame_{spec.architecture}",
        "inputs": _tensors(signature.inputs.values()),
        "outputs": _tensors(signature.outputs),
    }


def configuration(
    spec: ModelSpec, signature: Signature, *, backend: str, device: str, users: int, executors: int
) -> dict[str, Any]:
    """Model configuration: `max_batch_size` is the most `users` of one request, `dims` leave users out."""
    kind = "KIND_GPU" if device.startswith("cuda") else "KIND_CPU"
    limits = {
        "architecture": spec.architecture,
        "max_candidates": spec.input.max_candidates,
        "max_history": spec.input.max_history,
        "actions": spec.input.actions,
        "scenarios": spec.input.scenarios,
        "vocabulary": spec.input.item_id.vocabulary,
    }
    return {
        "name": spec.name,
        "platform": f"flame_{spec.architecture}",
        "backend": backend,
        "max_batch_size": users,
        "input": [_dims(tensor) | {"optional": tensor.optional} for tensor in signature.inputs.values()],
        "output": [_dims(tensor) for tensor in signature.outputs],
        "instance_group": [{"name": f"{spec.name}_0", "kind": kind, "count": executors}],
        "parameters": {name: {"string_value": str(value)} for name, value in limits.items()},
    }


def index(spec: ModelSpec, obstacle: Exception | None) -> list[dict[str, str]]:
    """The repository index: the one model there is, and why it takes no requests, where it does not."""
    state = "UNAVAILABLE" if obstacle else "READY"
    return [{"name": spec.name, "version": spec.version, "state": state, "reason": str(obstacle or "")}]


def _tensors(tensors: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape} for tensor in tensors]


def _dims(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": tensor.shape[1:]}
