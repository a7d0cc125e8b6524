"""Small numbers that kernels and Python share.

Answers of a store, one uint8 per id: UNANSWERED (not in time), FOUND (the row was written), ABSENT (no such item).

Status of one item row of a request, as bits of a uint8. No bit at all is a row that is missing. ROW: a row was
written. UNKNOWN: the store does not have the item. EXPIRED: what the cache had is past its time to live. PENDING:
somebody fetches it. BACKING_OFF: the last fetch failed and the next one waits.
"""

from __future__ import annotations

UNANSWERED = 0
FOUND = 1
ABSENT = 2

ROW = 1
UNKNOWN = 2
EXPIRED = 4
PENDING = 8
BACKING_OFF = 16
