"""The paths of Maildirs, and names that cannot lead outside them."""

import glob
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from minismtp import Address

from ._options import check_placeholders

# A file name has at most 255 octets, and a template may put both values into one name.
_LONGEST_VALUE = 120
_KNOWN = 4096  # values whose form is remembered


class Template:
    """A path with the placeholders {domain} and {local}. Raise ValueError for another one.

    `own_levels` is the number of directories at the end of a path that depend on the mailbox.
    """

    def __init__(self, path: Path) -> None:
        self._text = str(path)
        check_placeholders("path", self._text, ("domain", "local"))
        if re.search(r"\}[\w.~+=%-]*\{", self._text, re.ASCII):
            raise ValueError(f"path: {self._text!r}: expected / or @ between the placeholders")
        varying = [number for number, part in enumerate(path.parts) if "{" in part]
        self.own_levels = len(path.parts) - varying[0] if varying else 1

    def fill(self, mailbox: Address) -> str:
        """Return the path for a mailbox."""
        return self._text.format(
            domain=path_component(mailbox.ascii_domain), local=path_component(mailbox.local)
        )

    def temporaries(self, folders: Iterable[str]) -> Iterator[str]:
        """Yield the files in tmp/ of all existing Maildirs and of these folders in them."""
        parts = [glob.escape(part) for part in re.split(r"\{(?:domain|local)\}", self._text)]
        for folder in ("", *(f"/.{glob.escape(name)}" for name in folders)):
            yield from glob.iglob("*".join(parts) + f"{folder}/tmp/[0-9]*")  # noqa: PTH207, S108 - plain strings, and a pattern


def name_part(text: str) -> str:
    r"""Return a part of a file's name; the Maildir specification writes `/` as \057, `:` \072."""
    return text.replace("/", r"\057").replace(":", r"\072")


@lru_cache(_KNOWN)
def path_component(value: str) -> str:
    """Return a value as (part of) one path component; different values stay different."""
    text = quote(value, safe="+=", errors="surrogatepass") or "%"
    if text.startswith("."):
        text = f"%2E{text[1:]}"
    if len(text) > _LONGEST_VALUE:
        digest = sha256(text.encode("ascii")).hexdigest()
        text = f"{text[: _LONGEST_VALUE - 66]}%%{digest}"
    return text
