"""What is logged, and that every line of it can be read."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from flame import log

LOGGERS = ("flame", "uvicorn")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Logging belongs to the whole process."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_every_line_is_json_whoever_logs(as_it_was: None) -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    logging.getLogger("flame.part").info("one of %d", 3)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("uvicorn.error").info("Started server process")
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("flame").exception("failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["one of 3", "Invalid HTTP request received.", "failed"]
    assert [line["level"] for line in lines] == ["info", "warning", "error"]
    assert "ValueError: a\nb" in lines[2]["exception"]


def test_below_the_level_nothing_is_said_and_once_is_enough(as_it_was: None) -> None:
    stream = io.StringIO()
    log.configure("info", "text", stream)
    log.configure("warning", "text", stream)
    logging.getLogger("flame.part").info("too quiet")
    logging.getLogger("flame.part").warning("loud")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("WARNING flame.part: loud\n")
