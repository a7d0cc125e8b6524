"""Logging set-up: one handler on the `flame` logger, as text for people or JSON lines for machines.

Nothing is configured at import; the command line calls `configure`, a library user keeps the logging of their program.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

import msgspec


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message and, where there is one, the exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """Sends records of the `flame` logger to `stream` (standard error by default) as "text" or "json" lines.

    So are warnings of the HTTP server's library, which tells of connections that do not speak HTTP: a reader of JSON
    lines can read every line. Called once, when a program starts.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    for name, least in (("flame", level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(least)
        logger.propagate = False
