"""The certificates of smtpd, and the versions of TLS: our table [tls]."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path
from typing import Final

from minismtp.cli.import_postfix.draft import DraftFile, Table
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.main_cf import MainCf
from minismtp.cli.postfix_files.text import PostfixError, read_text, words
from minismtp.cli.setup import host
from minismtp.cli.setup.plan import Made

_PAIRS: Final = (
    ("smtpd_tls_chain_files", "smtpd_tls_chain_files"),
    ("smtpd_tls_eccert_file", "smtpd_tls_eckey_file"),
    ("smtpd_tls_cert_file", "smtpd_tls_key_file"),
)
_FILES: Final = ("tls/fullchain.pem", "tls/key.pem")  # where the hook of certbot writes, too
_OLD: Final = ("SSLv2", "SSLv3", "TLSv1", "TLSv1.1")
_LEVEL: Final = "smtpd_tls_security_level"


def has_tls(main: MainCf) -> bool:
    """Return whether a service offers TLS."""
    level = main.value(_LEVEL)
    if level:
        return level != "none"
    return "yes" in {main.value("smtpd_use_tls"), main.value("smtpd_enforce_tls")}


def carry_certificates(migration: Migration) -> None:
    """Set the certificate if a listener needs one; it is self-signed if there is no usable one."""
    _carry_levels(migration)
    if all(table.keys["tls"] == "none" for table in migration.draft.listeners):
        return
    tls = migration.draft.tls
    for names in _PAIRS:
        pair = _files(migration, *names)
        if pair is None:
            continue
        if tls.keys:
            text = "a second certificate, of another kind of key, is not used"
            for name in names:
                migration.unneeded(name, text)
        elif trouble := _carry_pair(migration, names, pair):
            for name in dict.fromkeys(names):
                migration.by_hand(name, f"{trouble}; then set `certificate` and `key` of [tls]")
    if not tls.keys:
        _make_certificate(migration)
    _carry_versions(migration)
    _carry_authorities(migration)
    _carry_sni(migration)


def _carry_levels(migration: Migration) -> None:
    for name in (_LEVEL, "smtpd_use_tls", "smtpd_enforce_tls", "smtpd_tls_wrappermode"):
        migration.carried(name, "listeners[].tls")
    if migration.value(_LEVEL) == "encrypt":
        text = "a listener for mail of other servers cannot demand TLS; it offers it"
        migration.by_hand(_LEVEL, text)


def _files(migration: Migration, certificate: str, key: str) -> tuple[Path, Path] | None:
    """Return the paths of a certificate and its key, if they are set."""
    names = words(migration.value(certificate))
    if not names or names[0] == "none":
        return None
    if len(names) > 1 and certificate == key:
        migration.by_hand(certificate, f"only the first of {len(names)} files is used")
    second = migration.value(key).split() if key != certificate else names
    return Path(names[0]), Path((second or names)[0])


def _carry_pair(migration: Migration, names: tuple[str, str], pair: tuple[Path, Path]) -> str:
    """Set a certificate and its key, or copies of them. Return why neither is possible, or ""."""
    certificate, private_key = (_source(migration, path) for path in pair)
    trouble = _trouble(certificate, private_key, host.account())
    if not trouble and (certificate, private_key) == pair:
        for key, name, path in zip(("certificate", "key"), names, pair, strict=True):
            migration.draft.tls.set(key, str(path), migration.origin(name))
            migration.carried(name, f"tls.{key}")
        return ""
    try:
        copies = [read_text(path) for path in (certificate, private_key)]
        "".join(copies).encode()
    except (PostfixError, UnicodeEncodeError) as error:
        return trouble or str(error)
    if unusable := _trouble(certificate, private_key, ""):
        return unusable
    for key, name, path, file, content in zip(
        ("certificate", "key"), names, pair, _FILES, copies, strict=True
    ):
        migration.draft.tls.set(key, file, f"a copy of {path}; {migration.origin(name)}")
        migration.draft.files.append(DraftFile(file, content, f"a copy of {path}, not shown"))
        migration.carried(name, f"tls.{key}, a copy")
    text = f"the server's user cannot read {pair[1]}, so the server has copies in tls/"
    migration.by_hand(names[1], f"{text}: copy again after each renewal, see docs/migration.md")
    return ""


def _source(migration: Migration, path: Path) -> Path:
    """Return where a file of the old host is: in its copy, or here."""
    located = migration.directory.locate(str(path))
    try:
        located.stat()
    except OSError:
        return path
    return located


def _trouble(certificate: Path, key: Path, account: str) -> str:
    """Return why an account cannot use a certificate, or "". Without an account it is this one."""
    for path in (certificate, key):
        with contextlib.suppress(OSError):  # which the following says
            if not stat.S_ISREG(path.stat().st_mode):  # to open a FIFO would take forever
                return f"{path} is no regular file"
    try:
        host.usable_certificate(certificate, key, account)
    except host.CertificateError as error:
        return str(error)
    return ""


def _make_certificate(migration: Migration) -> None:
    tls = migration.draft.tls
    tls.comment = "A new certificate, signed by itself, until yours can be used"
    certificate, key = _FILES
    tls.set("certificate", certificate)
    tls.set("key", key)
    migration.draft.files += [
        DraftFile(certificate, Made.CERTIFICATE),
        DraftFile(key, Made.TLS_KEY),
    ]


def _carry_versions(migration: Migration) -> None:
    for name in ("smtpd_tls_protocols", "smtpd_tls_mandatory_protocols"):
        if not migration.is_set(name):
            continue
        listed = words(migration.value(name).replace(":", ","))
        newest = "TLSv1.3" in listed or ">=TLSv1.3" in listed or "!TLSv1.2" in listed
        oldest = {*listed, *(each.removeprefix(">=") for each in listed)}
        if newest:
            migration.draft.tls.set("minimum_version", "1.3", migration.origin(name))
        if any(version in oldest for version in _OLD):
            migration.unneeded(name, "versions before TLS 1.2 are not offered (RFC 8996)")
        else:
            migration.carried(name, "tls.minimum_version")
    for name in ("smtpd_tls_ciphers", "smtpd_tls_mandatory_ciphers", "tls_preempt_cipherlist"):
        migration.unneeded(name, "the cipher suites of a listener are `ciphers`; the default fits")


def _carry_authorities(migration: Migration) -> None:
    name = "smtpd_tls_CAfile"
    if not migration.is_set(name):
        return
    if "yes" in {migration.value("smtpd_tls_ask_ccert"), migration.value("smtpd_tls_req_ccert")}:
        text = "clients with certificates: set `client_ca` of [tls], and `client_certificates`"
        migration.by_hand(name, text)
    else:
        text = "smtpd asks for no certificates; the chain belongs into `certificate`"
        migration.unneeded(name, text)


def _carry_sni(migration: Migration) -> None:
    for table in migration.tables("tls_server_sni_maps"):
        for pair in table.pairs:
            files = words(pair.value)
            sni = Table("[[tls.sni]]")
            wildcard = pair.key.startswith(".")
            sni.set("name", f"*{pair.key}" if wildcard else pair.key, pair.place)
            file = Path((files or ["/"])[0])
            sni.set("certificate", str(file))
            sni.set("key", str(file))
            if trouble := _trouble(file, file, host.account()):
                text = f"{trouble}; then add [[tls.sni]]"
                migration.by_hand("tls_server_sni_maps", text, pair.place)
            else:
                migration.draft.sni.append(sni)
                migration.carried("tls_server_sni_maps", "tls.sni", pair.place)
        if not table.is_listed:
            text = f"{table.name}: {table.trouble or 'its names are not listed'}; add [[tls.sni]]"
            migration.by_hand("tls_server_sni_maps", text)
