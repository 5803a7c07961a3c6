"""rspamd's answers as values, and the changes of the header that it asks for."""

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.header import Header
from typing import Any, Final

from minismtp import RemoteError, StashKey, format_field

_log: Final = logging.getLogger(__name__)
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_SUBJECT: Final = 4000  # characters: it begins with the sender's own, and takes 2 us each to encode


@dataclass(frozen=True, slots=True)
class RspamdResult:
    """rspamd's result for a message; `symbols` has the score of each one that matched."""

    action: str
    score: float
    required: float
    symbols: Mapping[str, float]


#: The result of an envelope's message; it is missing if rspamd was not asked.
RSPAMD: Final[StashKey[RspamdResult]] = StashKey()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: `text` is for the client, `instead` is an action instead of reject."""

    result: RspamdResult
    text: str = ""
    subject: str = ""
    instead: str = ""
    spam_fields: Mapping[str, str] = field(default_factory=dict)
    passes: bool = False  # whatever the action is
    added: tuple[tuple[str, str, int | None], ...] = ()  # name, value, place
    removed: tuple[tuple[str, int], ...] = ()  # name, which of them; 0 = all

    @property
    def action(self) -> str:
        """The action to take."""
        action = "no action" if self.passes else self.result.action
        instead = action == "reject" and self.instead in {"quarantine", "discard"}
        return self.instead if instead else action


def parse(body: bytes) -> Answer:
    """Read the JSON of /checkv2. Raise RemoteError if it is malformed."""
    try:
        return _answer(json.loads(body))
    except RecursionError:
        raise RemoteError("rspamd answers with JSON that is nested too deeply") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RemoteError(f"rspamd answers {body[:200]!r} ({error!r})") from error


def _answer(said: Any) -> Answer:  # noqa: ANN401 - any JSON
    milter = said.get("milter") or {}
    symbols = said.get("symbols") or {}
    return Answer(
        RspamdResult(
            str(said["action"]),
            _number(said["score"]),
            _number(said["required_score"]),
            {str(name): _number(symbol.get("score", 0)) for name, symbol in symbols.items()},
        ),
        text=str((said.get("messages") or {}).get("smtp_message") or ""),
        subject=str(said.get("subject") or ""),
        instead=str(milter.get("reject") or ""),
        passes=milter.get("no_action") is True,
        spam_fields=_spam_fields(milter.get("spam_header")),
        added=tuple(
            _added(name, each)
            for name, values in (milter.get("add_headers") or {}).items()
            for each in (values if isinstance(values, list) else [values])
        ),
        removed=tuple(
            (name, int(number))
            for name, numbers in (milter.get("remove_headers") or {}).items()
            for number in (numbers if isinstance(numbers, list) else [numbers])
        ),
    )


def _added(name: str, said: Any) -> tuple[str, str, int | None]:  # noqa: ANN401 - any JSON
    if not isinstance(said, dict):
        return name, str(said), None
    place = said.get("order", said.get("index"))
    return name, str(said["value"]), None if place is None else int(place)


def _number(value: Any) -> float:  # noqa: ANN401 - any JSON
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no score")
    return number


def _spam_fields(said: Any) -> Mapping[str, str]:  # noqa: ANN401 - any JSON
    match said:
        case dict():
            return {str(name): str(value) for name, value in said.items()}
        case str():
            return {"X-Spam": said}
        case _:
            return {"X-Spam": "Yes"}


def edited(fields: list[bytes], answer: Answer) -> list[bytes]:
    """Return the fields of a header with the changes of the answer.

    The place of an added field counts from 0 at the top, a negative one from the end; without a
    place the field comes last.
    """
    places = _by_name(fields) if answer.removed else {}
    gone = {
        place
        for name, number in answer.removed
        for place in _removed(places.get(_key(name), []), number)
    }
    kept = [raw for place, raw in enumerate(fields) if place not in gone]
    whole = len(kept) - (1 if kept and not kept[-1].endswith(b"\n") else 0)  # the last may lack it
    for name, value, order in answer.added:
        place = whole if order is None else order
        place = place + whole + 1 if place < 0 else place
        made = _field(name, value)
        place = max(0, min(place, whole))
        kept[place:place] = made
        whole += len(made)
    if answer.action == "add header":
        for name, value in answer.spam_fields.items():
            kept = _field(name, value) + _without(kept, name)
    if answer.action == "rewrite subject" and answer.subject:
        place = next(iter(_by_name(kept).get(b"subject", ())), 0)
        kept = _without(kept, "Subject")
        kept[place:place] = _field("Subject", answer.subject[:_SUBJECT])
    return kept


def _field(name: str, value: str) -> list[bytes]:
    """Return a field, folded at the line ends of the value; warn about an invalid one."""
    first, *folded = _LINE_END.split(value)
    if name.lower() == "subject" and not value.isascii():
        first, *folded = Header(value, "utf-8", header_name=name).encode().split("\n")
    lines = [first, *(f"\t{line.strip()}" for line in folded if line.strip())]
    try:
        return [format_field(name, "\r\n".join(lines))]
    except ValueError as error:
        _log.warning("rspamd asks for an invalid field: %s", error)
        return []


def _without(fields: list[bytes], name: str) -> list[bytes]:
    unwanted = _key(name)
    return [raw for raw in fields if _name_of(raw) != unwanted]


def _removed(places: list[int], number: int) -> list[int]:
    if number == 0:
        return places
    place = number - 1 if number > 0 else len(places) + number
    return [places[place]] if 0 <= place < len(places) else []


def _by_name(fields: list[bytes]) -> dict[bytes, list[int]]:
    """Return the places of the fields of each name."""
    places: dict[bytes, list[int]] = {}
    for place, raw in enumerate(fields):
        places.setdefault(_name_of(raw), []).append(place)
    return places


def _name_of(raw: bytes) -> bytes:
    return raw.partition(b":")[0].rstrip(b" \t").lower()


def _key(name: str) -> bytes:
    return name.lower().encode(errors="replace")
