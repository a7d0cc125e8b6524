"""All compiled loops of the feature side, and what they share at compile time (see `flame.jit`)."""
