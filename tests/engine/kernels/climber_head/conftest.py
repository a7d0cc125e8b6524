"""The emulated and the real GPU of the stack's tests, for the head's kernels."""

from tests.engine.kernels.climber_stack.conftest import emulator, gpu, machine

__all__ = ["emulator", "gpu", "machine"]
