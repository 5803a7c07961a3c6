"""A Dovecot for the tests that need one: IMAP, LMTP, and Maildirs with quota."""

from __future__ import annotations

import imaplib
from pathlib import Path
from typing import Final

from fakes import DEADLINE, Daemon
from ports import free_port

CONFIGURATION: Final = """
protocols = imap lmtp
listen = 127.0.0.1
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = nobody
first_valid_uid = 1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:{mail}/%n
mail_plugins = quota
plugin {{
  quota = maildir:User quota
}}
protocol imap {{
  mail_plugins = quota imap_quota
}}
protocol lmtp {{
  postmaster_address = postmaster@example.org
}}
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = {driver}
  args = {arguments}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp_port}
  }}
  unix_listener lmtp {{
    mode = 0600
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
{more}
"""


class Dovecot:
    """A Dovecot for Maildirs below `mail`; every user's password is `secret`.

    LMTP is at `lmtp_port` and at the unix socket `lmtp_socket`. It runs as nobody in a user
    namespace, because Dovecot serves no mail as root. `users` are lines of a passwd-file; without
    them every user exists.
    """

    def __init__(
        self,
        program: str,
        unshare: str,
        directory: Path,
        mail: Path,
        *,
        more: str = "",
        users: str = "",
    ) -> None:
        self.port, self.lmtp_port = free_port(), free_port()
        self.lmtp_socket = directory / "run" / "lmtp"
        driver, identity = "static", f"uid=nobody gid=nogroup home={directory}"
        arguments = f"{identity} allow_all_users=yes"
        if users:
            driver, arguments = "passwd-file", f"username_format=%n {directory}/users"
            lines = (
                f"{line} userdb_{identity.replace(' ', ' userdb_')}" for line in users.split("\n")
            )
            (directory / "users").write_text("\n".join(lines))
        config = directory / "dovecot.conf"
        config.write_text(
            CONFIGURATION.format(
                directory=directory,
                mail=mail,
                port=self.port,
                lmtp_port=self.lmtp_port,
                driver=driver,
                arguments=arguments,
                more=more,
            )
        )
        nobody = ("--user", "--map-user=65534", "--map-group=65534")
        self._daemon = Daemon(
            *(unshare, *nobody, program, "-F", "-c", config), log=directory / "log", environment={}
        )
        self._daemon.await_port(self.port)

    def log_in(self, user: str) -> imaplib.IMAP4:
        """Begin an IMAP session."""
        client = imaplib.IMAP4("127.0.0.1", self.port, DEADLINE)
        assert client.login(user, "secret")[0] == "OK"
        return client

    def stop(self) -> None:
        """End it with all its processes."""
        self._daemon.stop()
