"""The domain that was registered for a name, by the public suffix list of publicsuffix.org.

The list is that of the package publicsuffixlist, which the extra `dmarc` installs. It is read once
in a process, when it is first needed, which takes 36 ms of CPU time.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from minismtp.values.address import to_ascii

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

_REMEMBERED: Final = 1024


@functools.cache
def public_suffixes() -> PublicSuffixList:
    """Return the list. Raise ModuleNotFoundError without the extra."""
    try:
        from publicsuffixlist import PublicSuffixList as Suffixes  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError as error:
        problem = f"needs the module {error.name!r}; install minismtp[dmarc]"
        raise ModuleNotFoundError(problem, name=error.name) from error
    return Suffixes()


@functools.lru_cache(_REMEMBERED)
def registrable_domain(name: str) -> str:
    """Return the part of a name that was registered: example.co.uk for www.example.co.uk.

    It is in lower case, with A-labels. A name that is an address or itself a public suffix is
    returned as a whole. Raise
    ModuleNotFoundError without the extra `dmarc`; call it in `on_start` once to learn that early.
    """
    name = to_ascii(name)
    if name.startswith("[") or name.rpartition(".")[2].isdecimal() or ":" in name:
        return name
    return public_suffixes().privatesuffix(name) or name
