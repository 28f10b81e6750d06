"""Strict YAML files: what a user writes is checked whole before anything runs.

An unknown key, a wrong type or a value out of range ends in one line that names the file, the key, what was found and
what was expected.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails

from equipoise.common.errors import StudyError
from equipoise.common.patterns import IN_WORDS


class Strict(BaseModel):
    """Base of every part of a study or site file: unknown keys are errors and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any) -> Any:
        """Pydantic would take `yes` and `true` for 1, and a cap of `yes` for an epsilon of 1."""
        for key in value if isinstance(value, dict) else ():
            if key in cls.model_fields:
                for fault in _truths_for_numbers(cls.model_fields[key].annotation, value[key], (key,)):
                    raise ValidationError.from_exception_data(cls.__name__, [fault])
        return value


def _truths_for_numbers(annotation: Any, value: Any, place: tuple[int | str, ...]) -> Iterator[InitErrorDetails]:
    """Each truth where a number belongs, in mappings and lists of numbers too."""
    kinds = _kinds(annotation)
    if isinstance(value, bool):
        if kinds & {int, float} and not kinds & {bool, Any}:
            yield InitErrorDetails(type="float_type" if float in kinds else "int_type", loc=place, input=value)
        return
    for kind in kinds:
        parts = get_args(kind)
        if get_origin(kind) is dict and isinstance(value, dict):
            for key, one in value.items():
                yield from _truths_for_numbers(parts[1], one, (*place, key))
        elif get_origin(kind) in (list, tuple) and isinstance(value, list):
            for index, one in enumerate(value):
                inner = parts[min(index, len(parts) - 1)]
                yield from _truths_for_numbers(parts[0] if inner is ... else inner, one, (*place, index))


def _kinds(annotation: Any) -> set[Any]:
    """The types that a value may have; of containers with what they hold."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


ModelT = TypeVar("ModelT", bound=BaseModel)
_MERGE = "tag:yaml.org,2002:merge"
# Pydantic's words for what it expected, in a user's words.
_EXPECTED = {
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
}
_KEY = "[key]"  # by which pydantic says that a key itself is wrong, not its value


class _UniqueKeys(yaml.SafeLoader):
    """A loader which refuses a key written twice, where YAML silently keeps the last."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: list[Any] = []
    for key_node, _ in node.value:
        if key_node.tag == _MERGE:
            continue  # `<<` brings in keys that stand elsewhere; those written here go before them
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"key {key!r} is written twice; remove one", problem_mark=key_node.start_mark
            )
        seen.append(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        StudyError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file; give the path of a YAML file") from None
    except IsADirectoryError:
        raise StudyError(f"{path}: cannot be read: it is a folder; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise StudyError(f"{path}: cannot be read: it is no text in UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from None
    try:
        value = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise StudyError(f"{path}: line {line}: not valid YAML: {error.problem}") from None
    except RecursionError:
        raise StudyError(f"{path}: not valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow, which has no line
        raise StudyError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise StudyError(f"{path}: expected a mapping of keys, found {type(value).__name__}")
    return value


def validate(model: type[ModelT], value: Any, where: str) -> ModelT:
    """`value` as an instance of `model`.

    Raises:
        StudyError: one line naming the first wrong key, what was found and what was expected.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise StudyError(f"{where}: {explain(error, model, value)}") from None


def as_text(value: Any) -> Any:
    """A number as its text, since YAML reads 1 as one; all else as it is, for the schema to judge.

    Above all a truth stays one: YAML reads yes and no so, and no word that a hospital writes is "True".
    """
    return str(value) if isinstance(value, int | float | date) and not isinstance(value, bool) else value


def explain(error: ValidationError, model: type[BaseModel], value: Any) -> str:
    """The first fault that pydantic found in `value`, as one line for a person."""
    faults = [(tuple(_keys(value, one["loc"], one["type"] == "missing")), one) for one in error.errors()]
    # Where a value may be of several kinds, each has its fault, and those that looked into it say more, like our own.
    inside = {place[:depth] for place, _ in faults for depth in range(len(place))}
    deep = [(place, one) for place, one in faults if place not in inside or one["type"] == "value_error"]
    location, first = deep[0]
    key = ".".join(location)
    others = len({place for place, _ in deep}) - 1
    more = f" ({others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, list(location[:-1]))
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "known keys: " + ", ".join(sorted(known))
        return f"unknown key {key!r}; {hint}{more}"
    if first["type"] == "missing":
        return f"key {key!r} is missing{more}"
    found = first.get("input")
    shown = f"={found!r}" if isinstance(found, str | int | float | bool) else ""
    if first["loc"][-1:] == (_KEY,):
        key, shown = ".".join(location[:-1]), f": key {found!r}"
    said = _said([one for place, one in deep if place == location])
    return f"{key}{shown}{': ' if key else ''}{said[0].lower()}{said[1:]}{more}"


def _said(faults: Sequence[ErrorDetails]) -> str:
    """What was expected of one value; `faults` are of the kinds that it may be of."""
    words = list(dict.fromkeys(word for fault in faults if (word := _expected(fault))))
    if not words:
        return faults[0]["msg"].removeprefix("Value error, ")
    if "a number" in words and "an integer" in words:
        words.remove("an integer")
    text = f"expected {', '.join(words[:-1])}{' or ' if words[1:] else ''}{words[-1]}"
    if words != ["text"]:
        return text
    truth = isinstance(faults[0]["input"], bool)
    return f"{text}; put it in quotes" + (", since YAML reads yes, no, on and off as true and false" if truth else "")


def _expected(fault: ErrorDetails) -> str | None:
    context = fault.get("ctx", {})
    if fault["type"] == "literal_error":
        return str(context["expected"])
    if fault["type"] == "string_pattern_mismatch":
        return IN_WORDS.get(context["pattern"])
    return _EXPECTED.get(fault["type"])


def _keys(value: Any, location: tuple[int | str, ...], missing: bool) -> list[str]:
    """A pydantic location as the keys that the user wrote: without the names that pydantic gives a union's members."""
    keys: list[str] = []
    for index, part in enumerate(location):
        places = range(len(value)) if isinstance(value, list | tuple) else value
        if isinstance(places, dict):  # its keys may be numbers, whose text a validator has put there
            places = {as_text(key): item for key, item in places.items()} | places
            value = places
        if isinstance(places, range | dict) and part in places:
            value = value[part]
        elif not (missing and index == len(location) - 1):
            continue
        keys.append(str(part))
    return keys


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """Keys allowed at `path` below `model`; the path may pass through lists and unions."""
    candidates: list[type[BaseModel]] = [model]
    for part in path:
        following: list[type[BaseModel]] = []
        for candidate in candidates:
            field = candidate.model_fields.get(part)
            if field is not None:
                following += _models_in(field.annotation)
        # A list index or a union's tag is a part of the location without being a field.
        candidates = following or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Union or get_args(annotation):
        return [model for part in get_args(annotation) for model in _models_in(part)]
    return []


def override(value: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """A copy of `value` with each `key.path=YAML` of `--set` applied; checked by the schema afterwards.

    Raises:
        StudyError: an assignment without `=`, or a path through something that is not a mapping.
    """
    result: dict[str, Any] = _copy(value)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise StudyError(f"--set {assignment}: expected key=value, as in method.beta=0.5")
        *parents, last = path.strip().split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise StudyError(
                    f"--set {assignment}: {parent!r} has no keys; end the path there, as in {parent}=value"
                )
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise StudyError(
                f"--set {assignment}: the value is not valid YAML; close its brackets and quotes"
            ) from None
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return list(map(_copy, value)) if isinstance(value, list) else value
