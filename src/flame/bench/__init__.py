"""Measurements: seeded workloads, a load generator, benchmarks of the parts, and the report they all end with."""
