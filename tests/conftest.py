"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell ignores Ctrl-C for what it starts in the background, and children inherit that: the tests that interrupt a
# process would wait for ever. A signal that is handled here is back to its default in a child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
