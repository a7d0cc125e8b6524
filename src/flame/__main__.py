"""`python -m flame`, the same as the `flame` command."""

from __future__ import annotations

import sys

from flame.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
