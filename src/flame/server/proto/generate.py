"""Regenerates the committed messages: `python -m flame.server.proto.generate` with grpcio-tools 1.81.x (extra `dev`).

That version generates code which loads under protobuf 6.33.5 and later, and under 7; newer ones need 7.35 and would
shut out the stock Open Inference Protocol client.

The generated module gets a descriptor pool of its own instead of the process-wide one. Every implementation of this
protocol declares the same message names, and a shared pool refuses the second: without this, FLAME and the stock
client could not live in one process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).with_name("open_inference.proto")
_SHARED_POOL = "_descriptor_pool.Default()"
_OWN_POOL = "_descriptor_pool.DescriptorPool()"


def generate(target: Path) -> None:
    """Writes `open_inference_pb2.py` and its type stubs into the folder `target`."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}", f"--python_out={target}"]
    subprocess.run([*command, f"--pyi_out={target}", PROTO.name], check=True)
    module = target / "open_inference_pb2.py"
    code = module.read_text()
    assert _SHARED_POOL in code, "the generator writes another form now; adapt the replacement"
    module.write_text(code.replace(_SHARED_POOL, _OWN_POOL))


if __name__ == "__main__":
    generate(PROTO.parent)
