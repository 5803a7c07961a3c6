"""Names and passwords of users as people type them, in their one spelling (RFC 8265).

Two names with one folded form are taken for the same user, so folding goes no further than telling
letters by case, by width or by how accents are put together: `Alice`, `ALICE` and the same in
full-width letters are one, `straße` and `strasse` are two, and so are a Latin and a Cyrillic `a`.
"""

from __future__ import annotations

import unicodedata

from minismtp.values.address import to_ascii

_WIDTHS = ("<wide>", "<narrow>")


def folded_local(name: str) -> str:
    """Return a local part, or a name without a domain, as UsernameCaseMapped has it (3.3.2).

    That is in lower case, ordinary width and Unicode's form C. Characters that the profile forbids
    stay as they are: who has such a name may have it.
    """
    if name.isascii():
        return name.lower()
    folded = _once(name)
    return folded if folded == name else _once(folded)  # lower case may need composing again


def folded_name(name: str) -> str:
    """Return the one spelling of a user's name; blanks around it do not count.

    What follows the last `@` is a domain, with A-labels (RFC 5890).
    """
    local, at, domain = name.strip(" ").rpartition("@")
    return f"{folded_local(local)}@{to_ascii(domain)}" if at else folded_local(domain)


def prepared_password(password: str) -> str:
    """Return a password as OpaqueString has it (section 4.2.2): in form C, every blank a space."""
    if password.isascii():
        return password
    spaced = (" " if unicodedata.category(char) == "Zs" else char for char in password)
    return unicodedata.normalize("NFC", "".join(spaced))


def _once(name: str) -> str:
    return unicodedata.normalize("NFC", "".join(map(_plain_width, name)).lower())


def _plain_width(char: str) -> str:
    kind, _, codes = unicodedata.decomposition(char).partition(" ")
    return "".join(chr(int(code, 16)) for code in codes.split()) if kind in _WIDTHS else char
