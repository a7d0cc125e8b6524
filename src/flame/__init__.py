"""FLAME: online serving for generative-recommendation rankers."""

__version__ = "0.1.0"
