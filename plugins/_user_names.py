"""Spellings of user names that stores take for the same user."""

import unicodedata
from collections.abc import Iterator
from dataclasses import replace

from minismtp import Credentials, folded_name, prepared_password


def folded(name: str) -> str:
    """Return the one spelling of a user name that stores take in several for the same.

    As directories and databases compare (RFC 4518 section 2, and UsernameCaseMapped of RFC 8265):
    no matter of case and width, without invisible characters, blanks around it and double ones.
    """
    whole = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(char for char in whole if unicodedata.category(char) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def spellings(name: str) -> list[str]:
    """Return other spellings that a database may take for the same name, the plainest first.

    Some collations compare letters without accents.
    """
    once = folded(name)
    parts = unicodedata.normalize("NFKD", once)
    plain = "".join(part for part in parts if not unicodedata.combining(part))
    return [each for each in dict.fromkeys((plain, once)) if each not in ("", name)]


def spellings_of(credentials: Credentials, *, ignore_case: bool) -> Iterator[Credentials]:
    """Yield credentials as they came, then prepared by RFC 8265 where that makes them others.

    A service that tells spellings apart is asked about each. It decides by the password whose that
    is, so nobody becomes another user by it.
    """
    folded = replace(
        credentials,
        username=folded_name(credentials.username),
        authorization=folded_name(credentials.authorization),
    )
    found: list[Credentials] = []
    for each in (credentials, folded) if ignore_case else (credentials,):
        for password in (credentials.password, prepared_password(credentials.password)):
            spelled = replace(each, password=password)
            if spelled not in found:
                found.append(spelled)
                yield spelled
