"""The certificates of smtpd, and the versions of TLS: our table [tls]."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from minismtp.cli.import_postfix.draft import DraftFile, Table
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.main_cf import MainCf
from minismtp.cli.postfix_files.text import words
from minismtp.cli.setup import host
from minismtp.cli.setup.plan import Made

_PAIRS: Final = (
    ("smtpd_tls_chain_files", "smtpd_tls_chain_files"),
    ("smtpd_tls_eccert_file", "smtpd_tls_eckey_file"),
    ("smtpd_tls_cert_file", "smtpd_tls_key_file"),
)
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
        if trouble := _trouble(*pair):
            for name in dict.fromkeys(names):
                migration.by_hand(name, f"{trouble}; then set `certificate` and `key` of [tls]")
        elif tls.keys:
            text = "a second certificate, of another kind of key, is not used"
            migration.unneeded(names[0], text)
        else:
            for key, name, path in zip(("certificate", "key"), names, pair, strict=True):
                tls.set(key, str(path), migration.origin(name))
                migration.carried(name, f"tls.{key}")
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


def _trouble(certificate: Path, key: Path) -> str:
    """Return why a certificate cannot be used here, or ""."""
    try:
        host.usable_certificate(certificate, key, host.account())
    except host.CertificateError as error:
        return str(error)
    return ""


def _make_certificate(migration: Migration) -> None:
    tls = migration.draft.tls
    tls.comment = "A new certificate, signed by itself, until yours can be used"
    tls.set("certificate", "tls/fullchain.pem")
    tls.set("key", "tls/key.pem")
    migration.draft.files += [
        DraftFile("tls/fullchain.pem", Made.CERTIFICATE),
        DraftFile("tls/key.pem", Made.TLS_KEY),
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
            sni.set("certificate", files[0])
            sni.set("key", files[0])
            if trouble := _unreadable(Path(files[0])):
                migration.by_hand("tls_server_sni_maps", trouble, pair.place)
            else:
                migration.draft.sni.append(sni)
                migration.carried("tls_server_sni_maps", "tls.sni", pair.place)
        if not table.is_listed:
            text = f"{table.name}: {table.trouble or 'its names are not listed'}; add [[tls.sni]]"
            migration.by_hand("tls_server_sni_maps", text)


def _unreadable(path: Path) -> str:
    try:
        path.open("rb").close()
    except OSError as error:
        return f"{path}: {error.strerror}; then add [[tls.sni]]"
    return ""
