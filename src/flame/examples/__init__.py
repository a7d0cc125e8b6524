"""Examples on real data that ship with the package, so that `flame demo` works from an installed wheel."""
