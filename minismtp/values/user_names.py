"""A single spelling for the names and passwords that users type (RFC 8265).

Two names with the same folded form belong to the same user, so folding removes only differences of
case, width, and the composition of accents. `Alice`, `ALICE` and the same in full-width letters are
one user. `straße` and `strasse` are two, and so are a Latin and a Cyrillic `a`.
"""

from __future__ import annotations

import unicodedata

from minismtp.values.address import to_ascii

_WIDTHS = ("<wide>", "<narrow>")


def folded_local(name: str) -> str:
    """Return a local part, or a name without a domain, by the profile UsernameCaseMapped (3.3.2).

    It is in lower case, ordinary width and Unicode form C. Characters that the profile forbids stay
    as they are, because existing users may have such names.
    """
    if name.isascii():
        return name.lower()
    folded = _once(name)
    return folded if folded == name else _once(folded)  # lower case may have to be composed again


def folded_name(name: str) -> str:
    """Return the single spelling of a user name, without blanks around it.

    The part behind the last `@` is a domain and gets A-labels (RFC 5890).
    """
    local, at, domain = name.strip(" ").rpartition("@")
    return f"{folded_local(local)}@{to_ascii(domain)}" if at else folded_local(domain)


def prepared_password(password: str) -> str:
    """Return a password by the profile OpaqueString (section 4.2.2): form C, blanks as spaces."""
    if password.isascii():
        return password
    spaced = (" " if unicodedata.category(char) == "Zs" else char for char in password)
    return unicodedata.normalize("NFC", "".join(spaced))


def _once(name: str) -> str:
    return unicodedata.normalize("NFC", "".join(map(_plain_width, name)).lower())


def _plain_width(char: str) -> str:
    kind, _, codes = unicodedata.decomposition(char).partition(" ")
    return "".join(chr(int(code, 16)) for code in codes.split()) if kind in _WIDTHS else char
