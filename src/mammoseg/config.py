"""Configuration as nested frozen dataclasses: TOML and `--set` hold only what differs from the defaults.

An unknown key or a value of the wrong type is a `ConfigError` that names the key and the nearest match.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types as _types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mammoseg.errors import ConfigError

T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "", base: T | None = None) -> T:
    """Builds the dataclass `cls` from a nested mapping; missing keys keep their values in `base`, or their defaults.

    A nested group stands over the value its enclosing class has for it, not over its own class's defaults.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Example:
    ...     score_min: float = 0.5
    >>> from_dict(Example, {"score_mim": 0.1})
    Traceback (most recent call last):
    ...
    mammoseg.errors.ConfigError: unknown setting 'score_mim'; did you mean 'score_min'?
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in fields:
            raise ConfigError(f"unknown setting {path!r}; {_suggest(key, list(fields), where)}")
        held = _default(fields[key]) if base is None else getattr(base, key)
        kwargs[key] = _convert(hints[key], value, path, held)
    try:
        return cls(**kwargs) if base is None else dataclasses.replace(base, **kwargs)  # type: ignore[type-var]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain JSON-able values; `from_dict(type(config), to_dict(config)) == config`."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def load_toml(cls: type[T], path: Path | str | None, sets: Iterable[str] = (), under: Mapping[str, Any] | None = None) -> T:
    """Reads `path` (None: nothing) over the defaults of `cls`, then applies `key.sub=value` settings.

    under: nested settings that stand over the defaults and under the file's, key by key.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8")) if path is not None else {}
    except FileNotFoundError as error:
        raise ConfigError(f"config file not found: {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return with_sets(from_dict(cls, _laid_over(under or {}, values)), sets)


def with_sets(config: T, sets: Iterable[str]) -> T:
    """A copy of `config` with `key.sub=value` settings applied; values are JSON, or bare strings.

    A group given whole, `key={"sub": value}`, changes what it names and leaves the rest of the group as it was.
    """
    values = to_dict(config)
    for item in sets:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"expected --set key=value, got {item!r}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        _put(values, key.strip().split("."), value, type(config))
    return from_dict(type(config), values, base=config)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, value there, value here) of all that differs between two nested, JSON-able mappings; dotted keys, values as text.

    >>> differences({"a": {"b": 1, "c": (2, 3)}}, {"a": {"b": 1, "c": [2, 4]}, "d": None})
    [('a.c', '[2, 3]', '[2, 4]')]
    """
    a, b = (dict(_flat(json.loads(json.dumps(values)))) for values in (there, here))
    return [(k, _short(a.get(k)), _short(b.get(k))) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _laid_over(under: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        k: _laid_over(under[k], v) for k, v in values.items() if isinstance(v, Mapping) and isinstance(under.get(k), Mapping)
    }
    return {**under, **values, **both}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _put(values: dict[str, Any], keys: list[str], value: Any, cls: Any) -> None:
    node, path = values, ""
    for key in keys[:-1]:
        path = f"{path}.{key}" if path else key
        if key not in node:
            raise ConfigError(f"unknown setting {path!r}; {_suggest(key, list(node), '')}")
        child = node[key]
        if not isinstance(child, dict):
            raise ConfigError(f"{path!r} is a value, not a group of settings")
        node = child
    node[keys[-1]] = value


def _suggest(key: str, names: list[str], where: str) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    prefix = f"{where}." if where else ""
    return f"did you mean {prefix + near[0]!r}?" if near else f"known here: {', '.join(names)}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _convert(hint: Any, value: Any, path: str, held: Any = None) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a group of settings, got {value!r}")
        return from_dict(hint, value, path, held if type(held) is hint else None)  # type: ignore[arg-type]
    if origin in (typing.Union, _types.UnionType):
        return _convert_union(args, value, path, held)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{path}: expected one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: expected a list, got {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            raise ConfigError(f"{path}: expected {len(args)} values, got {len(value)}")
        return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a table, got {value!r}")
        return {k: _convert(args[1], v, f"{path}.{k}") for k, v in value.items()}
    return _scalar(hint, value, path)


def _convert_union(args: tuple[Any, ...], value: Any, path: str, held: Any) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for arg in args:
        if arg is type(None):
            continue
        try:
            return _convert(arg, value, path, held)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0])


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    raise ConfigError(f"{path}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
