"""Spellings of a user name that databases and directories treat alike."""

import itertools
import unicodedata
from collections.abc import Iterator
from dataclasses import replace

from minismtp import Credentials, folded_name, prepared_password


def folded(name: str) -> str:
    """Return the normal form of a user name that may be spelled in several ways.

    Directories and databases compare names (RFC 4518 section 2, and UsernameCaseMapped of RFC 8265)
    without case, width, invisible characters, blanks around them and double blanks.
    """
    whole = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(char for char in whole if unicodedata.category(char) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def spellings(name: str) -> list[str]:
    """Return other spellings that a database may treat alike, the plainest first.

    Some collations ignore accents.
    """
    once = folded(name)
    parts = unicodedata.normalize("NFKD", once)
    plain = "".join(part for part in parts if not unicodedata.combining(part))
    return [each for each in dict.fromkeys((plain, once)) if each not in ("", name)]


def spellings_of(credentials: Credentials, *, ignore_case: bool) -> Iterator[Credentials]:
    """Yield credentials as they are, then in the forms of RFC 8265 that differ.

    A service that distinguishes spellings is asked about each one. The password decides about the
    user, so a client cannot become another user in this way.
    """
    folded = replace(
        credentials,
        username=folded_name(credentials.username),
        authorization=folded_name(credentials.authorization),
    )
    prepared = prepared_password(credentials.password)
    names = (credentials, folded) if ignore_case else (credentials,)
    forms = ((each, replace(each, password=prepared)) for each in names)
    yield from dict.fromkeys(itertools.chain.from_iterable(forms))
