"""The configuration of Dovecot, so that users read over IMAP what the server stores.

Debian installs a Dovecot that lets system users log in. It is taken over only as long as its file
is the same as the copy that the package keeps. The versions 2.3 and 2.4 have different words for
the same settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minismtp.cli.setup.answers import Answers, CertificateFiles

CONFIGURATION: Final = Path("/etc/dovecot/dovecot.conf")
COPY: Final = Path("/usr/share/dovecot/dovecot.conf")
_VERSION: Final = re.compile(r"^dovecot_(?:config|storage)_version = \S+$", re.MULTILINE)
_PLAIN_PATH: Final = re.compile(r"[\w/.-]+", re.ASCII)

_VERSION_2_3: Final = """\
protocols = imap
mail_location = maildir:{mail}/%d/%n
first_valid_uid = 100
auth_default_realm = {domain}
ssl = required
ssl_cert = <{certificate}
ssl_key = <{key}
passdb {{
  driver = passwd-file
  args = scheme=ARGON2ID username_format=%u {passwords}
}}
userdb {{
  driver = static
  args = uid={user} gid={user} home={mail}/%d/%n
}}
"""
_VERSION_2_4: Final = """\
{versions}
protocols = imap
mail_driver = maildir
mail_path = {mail}/%{{user | domain}}/%{{user | username}}
first_valid_uid = 100
auth_default_domain = {domain}
ssl = required
ssl_server_cert_file = {certificate}
ssl_server_key_file = {key}
passdb passwd-file {{
  passwd_file_path = {passwords}
  default_password_scheme = ARGON2ID
}}
userdb static {{
  fields {{
    uid = {user}
    gid = {user}
    home = {mail}/%{{user | domain}}/%{{user | username}}
  }}
}}
"""
_BOTH: Final = """\
service auth {{
  extra_groups = {user}
}}
namespace inbox {{
  inbox = yes
  mailbox Sent {{
    special_use = \\Sent
    auto = subscribe
  }}
  mailbox Drafts {{
    special_use = \\Drafts
    auto = subscribe
  }}
  mailbox Trash {{
    special_use = \\Trash
    auto = subscribe
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Dovecot:
    """A Dovecot as its package left it: its file, the text of that, and the package's copy."""

    path: Path
    text: str
    copy: Path

    def configured(self, answers: Answers, files: CertificateFiles | None, passwords: Path) -> str:
        """Return the text of its file, for the certificate in `files` or that of an authority.

        It is empty if a path has signs that Dovecot would take for something else.
        """
        acme = answers.state_directory / "acme" / "certificate.pem"
        base = passwords.parent
        certificate, key = (base / files[0], base / files[1]) if files else (acme, acme)
        mail = answers.state_directory / "mail"
        if not all(
            _PLAIN_PATH.fullmatch(str(path)) for path in (certificate, key, mail, passwords)
        ):
            return ""
        versions = _VERSION.findall(self.text)
        text = (_VERSION_2_4 if versions else _VERSION_2_3) + _BOTH
        return text.format(
            versions="\n".join(versions),
            mail=mail,
            domain=answers.domain,
            certificate=certificate,
            key=key,
            passwords=passwords,
            user=answers.server_user,
        )
