"""What keeps the authority of `[tls.acme]` from issuing a certificate.

All of it is a warning if there is a certificate, because mail does not stop for a renewal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from minismtp.config import AcmeConfig, Config
from minismtp.config.mistakes import ConfigError, remedy
from minismtp.inspection.problem import Problem, error, warning
from minismtp.services.acme_files import AcmeFiles, State, requested, require_library

_HTTP: Final = 80


def check_acme(config: Config) -> Iterator[Problem]:
    """Yield what is wrong."""
    acme, files = config.tls.acme, AcmeFiles.of(config)
    if acme is None:
        return
    try:
        require_library()
    except ConfigError as problem:
        weight = warning if files.certificate.exists() else error
        yield weight(config, "tls.acme", problem.message)
    for key, text in _unreadable(acme):
        yield warning(config, f"tls.acme.{key}", text)
    if acme.challenges is not None and not acme.challenges.is_dir():
        text = f"{acme.challenges} is no directory; make it"
        yield warning(config, "tls.acme.challenges", text)
    web = config.web_listeners
    if acme.challenges is None and web and all(each.address.port != _HTTP for each in web):
        text = (
            "no listener of the kind web has port 80, where the authority asks, so the web server"
        )
        yield warning(config, "tls.acme", f"{text} that has it must pass these requests on")
    state = State()
    try:
        state = files.state()
        if files.account_key.exists():
            files.account_key.open("rb").close()
    except OSError as problem:
        text = f"{problem.filename}: {problem.strerror}{remedy(problem)}"
        yield warning(config, "tls.acme", text)
    if state.error and state.request == requested(acme):
        yield warning(config, "tls.acme", f"the last attempt failed: {state.error}")


def _unreadable(acme: AcmeConfig) -> Iterator[tuple[str, str]]:
    for key in ("directory_ca", "eab_key_file"):
        path: Path | None = getattr(acme, key)
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as problem:
            yield key, f"{path}: {problem.strerror}{remedy(problem)}"
