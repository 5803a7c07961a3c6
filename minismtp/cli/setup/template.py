"""The text of the configuration that `minismtp setup` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from minismtp.cli.setup.answers import Answers, CertificateFiles
from minismtp.inspection.dns_records import WEB_LABELS

#: The selectors of the two keys of each domain. Records of other programs have other names.
RSA: Final = "minismtp-rsa"
ED25519: Final = "minismtp-ed25519"
DKIM_KEYS: Final = "dkim/{domain}.{selector}.pem"

_HEAD: Final = """\
# The mail server of {domain}. `minismtp setup` wrote this file, and it is yours to change. After a
# change, run `minismtp check` and then `systemctl reload minismtp`. `man minismtp.toml` explains
# every key. Relative paths are relative to this file.

# The name of this host, which the PTR records of its addresses have to say
hostname = {hostname}
# Mail, the queue, and the databases of plugins
state_directory = {state}
# Your own plugins, one file each
plugin_path = ["plugins"]
{user}
# Mail from other servers, for the domains of the plugin mailboxes
[[listeners]]
name = "smtp"
address = "*:25"
kind = "mx"
tls = "starttls"

# Mail from your users, who log in, after STARTTLS ...
[[listeners]]
name = "submission"
address = "*:587"
kind = "submission"
tls = "starttls"

# ... or inside TLS from the first byte
[[listeners]]
name = "submissions"
address = "*:465"
kind = "submission"
tls = "implicit"

{tls}
[limits]
reserved_sessions = 200          # a flood on port 25 cannot take these from your users

[outbound]
# smarthost = "smtp.example.net:587"   # send all mail through this server; without it, by MX

[metrics]
address = "127.0.0.1:9925"       # /metrics, /healthz and /readyz

# [updates]
# check = "1d"                   # ask PyPI once a day for a newer release, and log it

# Plugins run in this order. The first one knows who has a mailbox: the names in the file of users,
# and the aliases. It rewrites the senders of mail that an alias forwards, with the secret.
"""
_TLS: Final = """\
[tls]
certificate = {certificate}
key = {key}
"""
_ACME: Final = """\
# What other servers and mail programs look up by HTTP and HTTPS, and the questions of the authority
[[listeners]]
name = "http"
address = "*:80"
kind = "web"

[[listeners]]
name = "https"
address = "*:443"
kind = "web"

# The certificate is from {whose}, to whose terms of service you agree. The server renews it.
# A name whose record in the DNS does not lead here is left out of the certificate.
[tls.acme]
agree_terms = true
{authority}contact = {contact}
names = [
    {names},
]
"""
_MAILBOXES: Final = """\
[[plugins]]
use = "mailboxes"
{name}domains = [{domain}]
users_file = {users}
aliases_file = {aliases}
"""
_SRS: Final = "srs_secret_file = {srs}\n"
_FILTERS: Final = """
# Who may log in. `minismtp passwd {passwords} bob@{domain}`
# adds bob, who also needs a line in the file of users, or changes his password.
[[plugins]]
use = "password_file"
path = "passwords"

# Users who logged in may send to other servers. Nobody else may.
[[plugins]]
use = "relay"

# Filters for the mail of strangers. docs/administrator.md has more of them.
[[plugins]]
use = "spf"
fail = "tag"                     # `dmarc` decides about mail that fails SPF and DKIM

# [[plugins]]
# use = "greylist"               # unknown senders must try again after five minutes

[[plugins]]
use = "dkim_verify"

[[plugins]]
use = "dmarc"

[[plugins]]
use = "authentication_results"

# Where mail for your users is stored
[[plugins]]
use = "maildir"
path = {mail}

# Signatures of the mail that your users send
"""
_DKIM_SIGN: Final = """\
[[plugins]]
use = "dkim_sign"
{name}domains = [{domain}]
keys = {keys}
selectors = [{selectors}]
"""


def quoted(text: str | Path) -> str:
    """Return a TOML string. The text has no control characters."""
    return json.dumps(str(text), ensure_ascii=False)


def whole(answers: Answers, files: CertificateFiles | None, passwords: Path) -> str:
    """Return the configuration of a host; the paths of its certificate may be relative to it."""
    mail = str(answers.state_directory).replace("{", "{{").replace("}", "}}")
    head = _HEAD.format(
        domain=answers.domain,
        hostname=quoted(answers.hostname),
        state=quoted(answers.state_directory),
        user=_user(answers.server_user),
        tls=_tls(answers, files),
    )
    filters = _FILTERS.format(
        domain=answers.domain,
        passwords=passwords,
        mail=quoted(f"{mail}/mail/{{domain}}/{{local}}"),
    )
    boxes = mailboxes(answers.domain, "users", "aliases", srs="srs-secret")
    return head + boxes + filters + dkim_sign(answers.domain)


def _tls(answers: Answers, files: CertificateFiles | None) -> str:
    if files:
        return _TLS.format(certificate=quoted(files.certificate), key=quoted(files.key))
    names = dict.fromkeys((answers.hostname, *web_names(answers.domain)))
    contact = quoted(f"postmaster@{answers.domain}")
    directory, ca = answers.authority
    lines = [f"directory = {quoted(directory)}\n"] if directory else []
    lines += [f"directory_ca = {quoted(ca)}\n"] if ca else []
    return _ACME.format(
        whose="the authority" if directory else "Let's Encrypt",
        authority="".join(lines),
        contact=contact,
        names=",\n    ".join(map(quoted, names)),
    )


def web_names(domain: str) -> list[str]:
    """Return the names under which clients look up the settings of a domain by HTTPS."""
    return [f"{label}.{domain}" for label in WEB_LABELS]


def _user(name: str) -> str:
    return (
        f"# A server that root starts becomes this user.\nuser = {quoted(name)}\n" if name else ""
    )


def mailboxes(domain: str, users: str, aliases: str, *, srs: str = "", name: str = "") -> str:
    """Return the table of the mailboxes of a domain."""
    table = _MAILBOXES.format(
        name=_label(name), domain=quoted(domain), users=quoted(users), aliases=quoted(aliases)
    )
    return table + (_SRS.format(srs=quoted(srs)) if srs else "")


def dkim_sign(domain: str, *, keys: str = DKIM_KEYS, name: str = "") -> str:
    """Return the table that signs the mail of a domain."""
    selectors = ", ".join(map(quoted, (RSA, ED25519)))
    return _DKIM_SIGN.format(
        name=_label(name), domain=quoted(domain), keys=quoted(keys), selectors=selectors
    )


def _label(name: str) -> str:
    return f"name = {quoted(name)}\n" if name else ""


def aliases(domain: str, user: str) -> str:
    """Return the file of aliases. RFC 2142 names those that every domain should have."""
    names = [name for name in ("postmaster", "abuse") if name != user]
    lines = [f"{name}: {user}" for name in names]
    return "\n".join([f"# Aliases at {domain}: lines `alias: target, target`", *lines, ""])


def users(domain: str, user: str) -> str:
    """Return the file of users."""
    return f"# Users of {domain}, one on each line, without the domain\n{user}\n"
