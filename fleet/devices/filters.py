"""The filter language over device attributes, shared by classes, rollouts, console and API.

::

    ram_mb >= 8192 and accelerator == "npu" and not emulated == true
    soc in ("sm8650", "sm8750") or tag:beta
    (os == "android" and os_version >= 14) or class:entry

Fields are allow-listed (:data:`FIELDS`); nothing of the database shows through.

- text (``soc os name``): ``==``, ``!=``, ``in``
- versions (``os_version runtime_version agent_version``): the same and ``< <= > >=``, all by their
  numbers: 1.10 comes after 1.9 and 1.20 equals 1.20.0; quotes may be left out around a number
- numbers (``ram_mb storage_free_mb``, in MB): all comparisons
- ``emulated``: ``== true``, ``!= false`` and so on
- ``accelerator``: a device has several kinds; ``==`` asks whether one of them is meant, ``!=``
  whether none is
- ``tag:<name>`` and ``class:<name>``; ``and`` binds before ``or``, ``not`` before both
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput, UnexpectedToken, VisitError

from fleet.devices.errors import FilterError

MAX_LENGTH = 2000  # characters; keeps the deepest possible nesting far from Python's stack limit
MAX_NESTING = 50

TEXT, VERSION, NUMBER, BOOLEAN, KINDS = "text", "version", "number", "boolean", "kinds"
FIELDS: dict[str, str] = {
    "soc": TEXT,
    "os": TEXT,
    "name": TEXT,
    "os_version": VERSION,
    "runtime_version": VERSION,
    "agent_version": VERSION,
    "ram_mb": NUMBER,
    "storage_free_mb": NUMBER,
    "emulated": BOOLEAN,
    "accelerator": KINDS,
}
KIND_VALUES = ("cpu", "gpu", "npu")

Attributes = Mapping[str, Any]
Predicate = Callable[[Attributes], bool]
_ORDERINGS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_GRAMMAR = r"""
    start: disjunction
    disjunction: conjunction (_OR conjunction)*
    conjunction: negation (_AND negation)*
    ?negation: _NOT negation -> negated
        | "(" disjunction ")"
        | FIELD COMPARISON value -> comparison
        | FIELD _IN "(" value ("," value)* ")" -> membership
        | TAG -> tag
        | CLASS -> class_
    ?value: STRING | NUMBER | BOOLEAN
    _OR.3: /or\b/
    _AND.3: /and\b/
    _NOT.3: /not\b/
    _IN.3: /in\b/
    BOOLEAN.3: /(true|false)\b/
    TAG.2: /tag:[A-Za-z0-9][A-Za-z0-9._-]{0,62}/
    CLASS.2: /class:[A-Za-z0-9_-]{1,63}/
    FIELD: /[A-Za-z_]+/
    COMPARISON: /==|!=|>=|<=|>|</
    STRING: /"[^"\x00-\x1f]{0,100}"/
    NUMBER: /-?[0-9]+(\.[0-9]+)*/
    %ignore /\s+/
"""


@dataclass(frozen=True)
class Filter:
    """A parsed filter. The empty text matches every device.

    ``classes`` are the classes it names, so that a device class can refuse to be defined by one.
    """

    text: str
    classes: frozenset[str]
    _predicate: Predicate

    def matches(self, attributes: Attributes) -> bool:
        """Whether a device with these attributes is meant.

        Args:
            attributes: :func:`attributes_of` names them; a missing one counts as unknown.
        """
        return self._predicate(attributes)


def attributes_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a device from its promoted columns (``.values()`` of :data:`COLUMNS`)."""
    attributes = {name: row[name] for name in FIELDS if name != "accelerator"}
    return attributes | {
        "accelerator": frozenset(row["accelerators"]),
        "tag": frozenset(row["tags"]),
        "class": row["class_name"],
    }


COLUMNS = (*(name for name in FIELDS if name != "accelerator"), "accelerators", "tags", "class_name")


@lru_cache(maxsize=1024)
def parse(text: str) -> Filter:
    """Parse a filter.

    Raises:
        FilterError: ``invalid_filter``, with the column (from 1) and what is possible there.
    """
    if len(text) > MAX_LENGTH:
        raise FilterError(f"The filter has more than {MAX_LENGTH} characters.", column=MAX_LENGTH + 1)
    if not text.strip():
        return Filter(text="", classes=frozenset(), _predicate=lambda _: True)
    _check_nesting(text)
    builder = _Builder()
    try:
        predicate: Predicate = builder.transform(_parser().parse(text))
    except UnexpectedInput as error:
        raise _syntax_error(text, error) from None
    except VisitError as error:
        if isinstance(error.orig_exc, FilterError):
            raise error.orig_exc from None
        raise
    return Filter(text=text, classes=frozenset(builder.classes), _predicate=predicate)


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", maybe_placeholders=False)


def _check_nesting(text: str) -> None:
    depth = 0
    for match in re.finditer(r'"[^"]*"|\(|\)|\bnot\b', text):
        depth += {"(": 1, ")": -1, "not": 1}.get(match.group(), 0)
        if depth > MAX_NESTING:
            raise FilterError(
                f"More than {MAX_NESTING} parentheses or 'not' in one filter. Write it with fewer.",
                column=match.start() + 1,
            )


def _syntax_error(text: str, error: UnexpectedInput) -> FilterError:
    position = error.pos_in_stream
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        return FilterError("The filter ends too early. Complete the last condition.", column=len(text) + 1)
    column = (position if position is not None and position >= 0 else 0) + 1
    found = text[column - 1 : column + 19].split("\n")[0]
    return FilterError(
        f"{found!r} was not expected here. A condition looks like: ram_mb >= 4096, "
        'soc in ("a", "b"), accelerator == "npu", tag:beta, class:entry.',
        column=column,
    )


@v_args(inline=True)
class _Builder(Transformer[Token, Predicate]):
    """Turns the syntax tree into one predicate, from the leaves up."""

    def __init__(self) -> None:
        super().__init__()
        self.classes: set[str] = set()

    def start(self, predicate: Predicate) -> Predicate:
        return predicate

    def disjunction(self, *parts: Predicate) -> Predicate:
        return parts[0] if len(parts) == 1 else lambda a: any(part(a) for part in parts)

    def conjunction(self, *parts: Predicate) -> Predicate:
        return parts[0] if len(parts) == 1 else lambda a: all(part(a) for part in parts)

    def negated(self, part: Predicate) -> Predicate:
        return lambda a: not part(a)

    def tag(self, token: Token) -> Predicate:
        name = token[len("tag:") :]
        return lambda a: name in a.get("tag", ())

    def class_(self, token: Token) -> Predicate:
        name = token[len("class:") :]
        self.classes.add(name)
        return lambda a: a.get("class", "") == name

    def comparison(self, field: Token, sign: Token, value: Token) -> Predicate:
        kind = _kind(field)
        if sign in ("==", "!="):
            wanted = frozenset([_value(kind, value)])
            equal = _member(str(field), kind, wanted)
            return equal if sign == "==" else lambda a: not equal(a)
        if kind not in (NUMBER, VERSION):
            raise FilterError(f"{field} can be compared with ==, != and in only.", column=_column(sign))
        return _ordered(str(field), kind, _ORDERINGS[sign], _value(kind, value))

    def membership(self, field: Token, *values: Token) -> Predicate:
        kind = _kind(field)
        return _member(str(field), kind, frozenset(_value(kind, value) for value in values))


def _kind(field: Token) -> str:
    if field not in FIELDS:
        known = ", ".join(sorted(FIELDS))
        raise FilterError(
            f"There is no field {str(field)!r}. Known: {known}; tag:…, class:….", column=_column(field)
        )
    return FIELDS[field]


def _member(field: str, kind: str, wanted: frozenset[Any]) -> Predicate:
    if kind == KINDS:
        return lambda a: not wanted.isdisjoint(a.get("accelerator", ()))
    if kind == VERSION:
        keys = frozenset(version_key(version) for version in wanted)
        return lambda a: version_key(a.get(field) or "") in keys
    return lambda a: a.get(field) in wanted


def _ordered(field: str, kind: str, compare: Callable[[Any, Any], bool], wanted: Any) -> Predicate:
    if kind == NUMBER:
        return lambda a: a.get(field) is not None and compare(a[field], wanted)
    key = version_key(wanted)

    def versions(attributes: Attributes) -> bool:
        found = version_key(attributes.get(field) or "")
        return bool(found) and compare(found, key)

    return versions


def version_key(text: str) -> tuple[int, ...]:
    """The numbers of a version, trailing zeros dropped (1.20.0 = 1.20); () where there is none."""
    numbers = [int(digits[:18]) for digits in re.findall(r"[0-9]+", text)]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _value(kind: str, token: Token) -> Any:
    """The value of a literal, checked against the field's kind."""
    literal = token[1:-1] if token.type == "STRING" else str(token)
    if kind == BOOLEAN and token.type == "BOOLEAN":
        return literal == "true"
    if kind == NUMBER and token.type == "NUMBER" and literal.count(".") <= 1:
        return float(literal)
    if kind == VERSION and (token.type == "STRING" or (token.type == "NUMBER" and literal[0] != "-")):
        if not version_key(literal):
            raise FilterError(f"{token} is not a version.", column=_column(token))
        return literal
    if kind == KINDS and token.type == "STRING":
        if literal not in KIND_VALUES:
            raise FilterError(f"{token} is not one of {', '.join(KIND_VALUES)}.", column=_column(token))
        return literal
    if kind == TEXT and token.type == "STRING":
        return literal
    expected = {BOOLEAN: "true or false", NUMBER: "a number", TEXT: 'text in "quotes"'}
    wanted = expected.get(kind, 'text in "quotes"')
    raise FilterError(f"{token} does not fit here: {wanted} is expected.", column=_column(token))


def _column(token: Token) -> int:
    return (token.start_pos or 0) + 1
