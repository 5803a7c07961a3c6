"""Spellings of user names that stores take for the same user."""

import unicodedata


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
