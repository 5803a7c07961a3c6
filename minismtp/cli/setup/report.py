"""What `minismtp setup` tells: the files before they are written, and what to do afterwards."""

from __future__ import annotations

import grp
import os
from pathlib import Path

from minismtp.cli.setup import dovecot, template
from minismtp.cli.setup.answers import Answers
from minismtp.cli.setup.placement import Owner
from minismtp.cli.setup.plan import Made, Plan, PlannedFile
from minismtp.cli.text import json_list
from minismtp.config import DEFAULT_FILE, Config
from minismtp.config.mistakes import ConfigError
from minismtp.inspection.dns_records import wanted_records
from minismtp.inspection.zone_text import zone_text
from minismtp.server.directories import server_process


def announced(plan: Plan, owner: Owner) -> list[str]:
    """Return a line for each file."""
    return [
        "These files are written, all or none:",
        *(f"  {_described(file, owner)}" for file in plan.files),
        *(f"  {path} (exists, and stays as it is)" for path in plan.kept),
    ]


def dry_run(plan: Plan, owner: Owner) -> list[str]:
    """Return the paths and contents, without secrets."""
    lines = [f"{path}: exists, and stays as it is" for path in plan.kept]
    for file in plan.files:
        lines += [f"==> {_described(file, owner)} <==", *_shown(file), ""]
    return [*lines, "Nothing was written."]


def as_json(plan: Plan, owner: Owner) -> list[str]:
    """Return the same as a JSON list; the content of a file that is made or kept is null."""
    kept = [{"path": str(path), "state": "kept", "content": None} for path in plan.kept]
    written = [
        {
            "path": str(file.path),
            "state": "replaced" if file.replaces else "new",
            "access": _access(owner),
            "content": None if isinstance(file.content, Made) else file.content,
        }
        for file in plan.files
    ]
    return json_list([*kept, *written])


def _described(file: PlannedFile, owner: Owner) -> str:
    if not file.replaces:
        return f"{file.path} (new, {_access(owner)})"
    change = "one line is added" if isinstance(file.content, Made) else "tables are added"
    if file.original:
        change = f"replaces the one that is there, which is kept as {file.original}"
    return f"{file.path} ({change})"


def _access(owner: Owner) -> str:
    mode = f"{owner.mode:04o}"
    if owner.group == -1:
        return mode
    try:
        group = grp.getgrgid(owner.group).gr_name
    except KeyError:
        group = str(owner.group)
    return f"{mode} root:{group}"


def _shown(file: PlannedFile) -> list[str]:
    if isinstance(file.content, Made):
        return [f"({file.content.value})"]
    if file.shown_as:
        return [f"({file.shown_as})"]
    return file.content.splitlines()


def finished(plan: Plan, answers: Answers, password: str, *, added: bool) -> list[str]:
    """Return what was done and what comes next: DNS, a password that was made, the server."""
    path = plan.configuration.path
    config = Config.load(path)
    lines = [f"{len(plan.files)} files are written. The configuration is {path}", ""]
    lines += [*_records(config, answers.domain), ""]
    if any(file.content is Made.CERTIFICATE for file in plan.files):
        lines.append(
            "Mail programs warn about the certificate, because it is signed by itself. Once the"
            " host has its name in the DNS, get a better one: docs/administrator.md, chapter TLS."
        )
    if config.tls.acme is not None:
        lines += _about_acme(config.tls.acme.names, answers.domain)
    lines += _about_imap(plan, config, answers)
    if password:
        lines.append(f"The password of {answers.address}, which is shown only now: {password}")
    elif not plan.needs_password:
        lines.append(f"{answers.address} has no new password: set it where your users have theirs.")
    return [*lines, "Next:", f"  {_next(config, path, added=added)}"]


def _records(config: Config, domain: str) -> list[str]:
    option = "" if config.file == str(DEFAULT_FILE) else f" --config {config.file}"
    try:
        zone = zone_text(wanted_records(config, domain))
    except ConfigError as error:
        return [f"`minismtp dns{option}` prints the records of the DNS: {error}"]
    head = f"{domain} needs these records in the DNS. `minismtp dns{option}` prints them again."
    return [head, "", *zone.removesuffix("\n").split("\n")]


def _about_acme(names: list[str], domain: str) -> list[str]:
    missing = [name for name in template.web_names(domain) if names and name not in names]
    if missing:
        yet = f"Add {', '.join(missing)} to `names` of [tls.acme]; they are in the records above."
        return [yet]
    text = (
        "The server gets its certificate when the names above are in the DNS and port 80 or 443 is"
        " open."
    )
    late = "If the DNS was late, `minismtp certificate renew` tries again at once."
    return [f"{text} Until then it has one that it signs itself: `minismtp certificate`.", late]


def _about_imap(plan: Plan, config: Config, answers: Answers) -> list[str]:
    if not answers.hostname:  # of a further domain
        return []
    if any(file.path == dovecot.CONFIGURATION for file in plan.files):
        text = f"Dovecot offers the mail over IMAP, as {answers.address} at {config.hostname}, port"
        return [f"{text} 993, from the start of minismtp on."]
    return ["To read mail over IMAP: docs/administrator.md, chapter Reading mail."]


def _next(config: Config, path: Path, *, added: bool) -> str:
    """Return the command that makes the configuration count."""
    ours = path == DEFAULT_FILE and Path("/run/systemd/system").is_dir()
    option = "" if path == DEFAULT_FILE else f" --config {path}"
    if server_process(config.state_directory):
        return "systemctl reload minismtp" if ours and added else f"minismtp reload{option}"
    if path == DEFAULT_FILE and os.geteuid() == 0:
        return "systemctl enable --now minismtp"
    return f"minismtp serve{option}"
