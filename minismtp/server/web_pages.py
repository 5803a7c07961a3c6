"""What the web listeners serve: a table of host names and paths, and nothing else.

No path leads to a file by the client's choice. Paths are compared as they are, without decoding
them, because no path here needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from minismtp.services.acme_challenges import PATH, Challenges

ANY_HOST: Final = ""


@dataclass(frozen=True, slots=True)
class Page:
    """The content of an answer, and its `kind` for the field Content-Type.

    With a `filename`, a browser saves it under that name.
    """

    kind: str
    body: bytes
    filename: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A request: `host` in lower case without a port, "" without one, and what follows it.

    `body` is that of a POST, empty for GET and HEAD.
    """

    host: str
    path: str
    query: str = ""
    body: bytes = b""


#: What a route leads to; None if the request asks for nothing that exists.
Route: TypeAlias = Callable[[Request], Page | None]


@dataclass(frozen=True, slots=True)
class Site:
    """All routes by host and path. Those of ANY_HOST are served under every name."""

    challenges: Challenges
    routes: Mapping[tuple[str, str], Route] = field(default_factory=dict)
    posts: frozenset[str] = frozenset()  # the paths that may be asked by POST

    def page(self, request: Request) -> Page | None:
        """Return the answer to a request, None if there is nothing."""
        if request.path.startswith(PATH):
            found = self.challenges.get(request.path.removeprefix(PATH))
            return None if found is None else Page("application/octet-stream", found)
        for host in (request.host, ANY_HOST):
            if route := self.routes.get((host, request.path)):
                return route(request)
        return None
