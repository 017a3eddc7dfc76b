"""Logs: one line per decision, JSON for machines or columns for people, never a secret."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO, TypeAlias

import structlog

from libs.kernel.errors import ConfigError

FormatName: TypeAlias = Literal["json", "console"]
LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
SECRET_KEYS: Final = frozenset(
    {"password", "secret", "token", "api_key", "authorization", "credentials"}
)
HIDDEN: Final = "(hidden)"


def set_up_logs(
    *,
    service: str,
    format_name: FormatName = "json",
    level: str = "info",
    stream: TextIO | None = None,
    **bound: object,
) -> None:
    """Set up structlog for this process; every line then carries the service and `bound`.

    Lines go to stderr (stdout belongs to results). Libraries' own loggers are heard from warnings
    on, through the same renderer. Raises: ConfigError for an unknown level.
    """
    if level not in LEVELS:
        raise ConfigError(f"log level: must be one of {', '.join(LEVELS)}; is {level!r}")
    output = sys.stderr if stream is None else stream
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service, **bound)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
    ]
    rendering = _rendering(format_name, is_terminal=output.isatty())
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=output),
        cache_logger_on_first_use=False,
    )
    _adopt_library_loggers(output, shared=shared, rendering=rendering)


def hide_secrets(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace what stands under a secret's name, at any depth of mappings."""
    del logger, method
    for key, value in event.items():
        if isinstance(value, MutableMapping):
            hide_secrets(None, "", value)
        elif key.lower() in SECRET_KEYS and value is not None:
            event[key] = HIDDEN
    return event


def _rendering(format_name: FormatName, *, is_terminal: bool) -> list[structlog.typing.Processor]:
    if format_name == "console":
        return [structlog.dev.ConsoleRenderer(colors=is_terminal)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _adopt_library_loggers(
    output: TextIO,
    *,
    shared: list[structlog.typing.Processor],
    rendering: list[structlog.typing.Processor],
) -> None:
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendering,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
