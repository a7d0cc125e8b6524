"""All compiled loops of the orchestrator (see `flame.jit`)."""
