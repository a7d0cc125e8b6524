"""All compiled loops of the feature side. What they share at compile time lies in this folder, see `jit`."""
