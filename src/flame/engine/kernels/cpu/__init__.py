"""Fused C++ kernels for CPUs, compiled for one model on the machine that runs it."""
