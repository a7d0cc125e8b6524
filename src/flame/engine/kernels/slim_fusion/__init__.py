"""The fusion's kernel for launches of few candidates; `flame.engine.kernels.fusion` builds and launches it."""
