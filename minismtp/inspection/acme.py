"""What keeps the authority of `[tls.acme]` from issuing a certificate.

All of it is a warning if there is a certificate, because mail does not stop for a renewal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minismtp.config import AcmeConfig, Config
from minismtp.config.acme_table import HTTP
from minismtp.config.mistakes import ConfigError, remedy
from minismtp.inspection.problem import Problem, error, warning
from minismtp.services.acme_answers import PORTS
from minismtp.services.acme_files import AcmeFiles, State, requested, require_library
from minismtp.services.acme_schedule import waits_for_dns


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
    if text := _unreachable(acme, config):
        yield warning(config, "tls.acme.challenge" if acme.challenge else "tls.acme", text)
    state = State()
    try:
        state = files.state()
        if files.account_key.exists():
            files.account_key.open("rb").close()
    except OSError as problem:
        text = f"{problem.filename}: {problem.strerror}{remedy(problem)}"
        yield warning(config, "tls.acme", text)
    if state.error and state.request == requested(acme):
        what = "the certificate waits" if waits_for_dns(state) else "the last attempt failed"
        yield warning(config, "tls.acme", f"{what}: {state.error}")


def _unreachable(acme: AcmeConfig, config: Config) -> str:
    """Return why no listener gets the checks of the authority, "" if one does."""
    if acme.challenges is not None:
        return ""
    ports = []
    for kind in config.acme_challenges:
        port = PORTS[kind]
        fitting = [each for each in config.web_listeners if (each.tls != "none") == (kind != HTTP)]
        if any(each.address.port == port for each in fitting):
            return ""
        ports.append(str(port))
    what = f"no listener of the kind web has port {' or '.join(ports)}, where the authority asks"
    return f"{what}, so whatever has the port must pass that on"


def _unreadable(acme: AcmeConfig) -> Iterator[tuple[str, str]]:
    for key in ("directory_ca", "eab_key_file"):
        path: Path | None = getattr(acme, key)
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as problem:
            yield key, f"{path}: {problem.strerror}{remedy(problem)}"
