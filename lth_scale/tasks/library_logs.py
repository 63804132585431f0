"""Silencing transformers while it loads a model."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import logging as transformers_logging


class MessageCollector(logging.Handler):
    """Collects the messages of log records instead of showing them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Collect the message of a record."""
        self.messages.append(record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' warnings and bars; an error gets the warnings as its notes."""
    library = transformers_logging.get_logger()
    collector = MessageCollector()
    has_bars = transformers_logging.is_progress_bar_enabled()
    propagate, handlers = library.propagate, library.handlers
    library.propagate, library.handlers = False, [collector]
    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        for message in collector.messages:
            error.add_note(message)
        raise
    finally:
        library.propagate, library.handlers = propagate, handlers
        if has_bars:
            transformers_logging.enable_progress_bar()
