"""Reads a service's configuration: a frozen dataclass, from TOML and then the environment.

`SERVICE__FIELD` overrides the file (`ONLINE_ROUTER__STREAMS_MAX=100`); a nested dataclass is one
more `__`, and a TOML table. An unknown key, a wrong type or a value that `__post_init__` rejects is
one ConfigError that names the field. Nobody else in the project reads os.environ.
"""

import dataclasses
import operator
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from libs.kernel.errors import ConfigError

SEPARATOR: Final = "__"
SECRET_WORDS: Final = ("password", "secret", "token", "credential", "api_key")
HIDDEN: Final = "(hidden)"
WORDS_TRUE: Final = frozenset({"1", "true", "yes", "on"})
WORDS_FALSE: Final = frozenset({"0", "false", "no", "off"})

OptionsT = TypeVar("OptionsT")

_log = structlog.get_logger(__name__)


def read_config(
    shape: type[OptionsT],
    *,
    service: str,
    file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> OptionsT:
    """Return the configuration of a service, after logging it without its secrets.

    The file may hold the fields at its top level or in a table named like the service; with such a
    table, other top-level tables belong to other services. Raises: ConfigError.
    """
    values = _read_file(file, service) if file is not None else {}
    _overlay(values, shape=shape, prefix=service.upper() + SEPARATOR, environment=environment)
    options = _build(shape, values, where=service)
    _log.info("config_resolved", service=service, **resolved(options))
    return options


def require_at_least(least: int, options: object, *names: str) -> None:
    """Raise ConfigError for the first of these fields that is lower; what is None may be.

    A name may lead into a nested table: `aws.poll_interval_ms`.
    """
    for name in names:
        value = operator.attrgetter(name)(options)
        if value is not None and value < least:
            raise ConfigError(f"{name}: must be at least {least}")


def require_positive(options: object, *names: str) -> None:
    """Raise ConfigError for the first of these fields that is not above 0."""
    for name in names:
        if getattr(options, name) <= 0:
            raise ConfigError(f"{name}: must be above 0")


def resolved(options: object) -> dict[str, object]:
    """Return the configuration as plain values for a log line or a result, secrets hidden."""
    assert dataclasses.is_dataclass(options)
    return {
        field.name: _shown(field.name, getattr(options, field.name))
        for field in dataclasses.fields(options)
    }


def _shown(name: str, value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return resolved(value)
    if value is not None and any(word in name.lower() for word in SECRET_WORDS):
        # Counts such as tokens_max are no secrets.
        return value if isinstance(value, int) else HIDDEN
    if isinstance(value, str) and "://" in value and "@" in value:
        scheme, _, rest = value.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"
    if isinstance(value, Path):
        return str(value)
    return value


def _read_file(file: Path, service: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    own = values.get(service, values)
    if not isinstance(own, dict):
        raise ConfigError(f"{file}: {service} must be a table")
    return own


def _overlay(
    values: dict[str, Any],
    *,
    shape: type[Any],
    prefix: str,
    environment: Mapping[str, str],
) -> None:
    """Put the environment's values over the file's; a name that fits no field is an error."""
    hints = typing.get_type_hints(shape)
    known = {name.upper(): name for name in hints}
    for variable in sorted(environment):
        if not variable.startswith(prefix):
            continue
        name = known.get(variable[len(prefix) :].split(SEPARATOR)[0])
        if name is None:
            raise ConfigError(f"{variable}: no such field; {_choices(hints)}")
        hint = hints[name]
        nested = prefix + name.upper() + SEPARATOR
        if dataclasses.is_dataclass(hint):
            if not variable.startswith(nested):
                raise ConfigError(f"{variable}: is a table; set {nested}<FIELD>")
            assert isinstance(hint, type)
            table = values.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{name}: must be a table")
            _overlay(table, shape=hint, prefix=nested, environment=environment)
        elif variable != prefix + name.upper():
            raise ConfigError(f"{variable}: {name} is no table")
        else:
            values[name] = _parse(environment[variable], hint, where=variable)


def _build(shape: type[OptionsT], values: Mapping[str, Any], *, where: str) -> OptionsT:
    assert dataclasses.is_dataclass(shape)
    hints = typing.get_type_hints(shape)
    for name in sorted(values):
        if name not in hints:
            raise ConfigError(f"{where}.{name}: no such field; {_choices(hints)}")
    arguments = {
        name: _convert(value, hints[name], where=f"{where}.{name}")
        for name, value in values.items()
    }
    for field in dataclasses.fields(shape):
        is_required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if is_required and field.name not in arguments:
            raise ConfigError(f"{where}.{field.name}: must be set")
    try:
        return shape(**arguments)
    except ConfigError:
        raise
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _choices(hints: Mapping[str, object]) -> str:
    return "there are " + ", ".join(sorted(hints))


def _convert(value: Any, hint: Any, *, where: str) -> Any:
    """Check a TOML value, or one parsed from the environment, against the field's type."""
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: must be a table")
        return _build(hint, value, where=where)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, typing.get_args(hint), where=where)
    if origin is typing.Literal:
        return _one_of(value, typing.get_args(hint), where=where)
    if origin is tuple:
        return _convert_tuple(value, typing.get_args(hint), where=where)
    return _convert_scalar(value, hint, where=where)


def _convert_scalar(value: Any, hint: Any, *, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(_one_of(value, tuple(member.value for member in hint), where=where))
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value).expanduser()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_bool_for_int = isinstance(value, bool) and hint is not bool
    if hint not in (int, float, bool, str):
        raise ConfigError(f"{where}: fields of type {hint} cannot be configured")
    if not isinstance(value, hint) or is_bool_for_int:
        raise ConfigError(f"{where}: must be {hint.__name__}, is {value!r}")
    return value


def _convert_union(value: Any, choices: tuple[Any, ...], *, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    failures: list[str] = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _convert(value, choice, where=where)
        except ConfigError as error:
            failures.append(str(error))
    raise ConfigError(failures[-1])


def _convert_tuple(value: Any, items: tuple[Any, ...], *, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: must be a list")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"{where}: must have {len(items)} items, has {len(value)}")
    return tuple(
        _convert(one, hint, where=f"{where}[{index}]")
        for index, (one, hint) in enumerate(zip(value, items, strict=True))
    )


def _one_of(value: Any, choices: tuple[Any, ...], *, where: str) -> Any:
    if value not in choices:
        raise ConfigError(f"{where}: must be one of {', '.join(map(str, choices))}; is {value!r}")
    return value


def _parse(text: str, hint: Any, *, where: str) -> Any:
    """Read an environment variable as the field's type; lists are separated by commas."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        choices = typing.get_args(hint)
        if text in ("", "none") and type(None) in choices:
            return None
        return _parse(text, next(c for c in choices if c is not type(None)), where=where)
    if origin is tuple:
        items = typing.get_args(hint)
        parts = [part.strip() for part in text.split(",")] if text else []
        hints = items[:1] * len(parts) if items[1:] == (Ellipsis,) else items
        if len(hints) != len(parts):
            raise ConfigError(f"{where}: must have {len(hints)} items, has {len(parts)}")
        return [_parse(part, one, where=where) for part, one in zip(parts, hints, strict=True)]
    if hint is bool:
        return _parse_bool(text, where=where)
    if hint in (int, float):
        try:
            return hint(text.replace("_", ""))
        except ValueError:
            raise ConfigError(f"{where}: must be {hint.__name__}, is {text!r}") from None
    return text


def _parse_bool(text: str, *, where: str) -> bool:
    if text.lower() in WORDS_TRUE:
        return True
    if text.lower() in WORDS_FALSE:
        return False
    raise ConfigError(f"{where}: must be true or false, is {text!r}")
