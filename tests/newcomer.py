"""Somebody who has a new Debian and follows the pages, command by command.

What the Internet would be is inside too: a resolver with the records of the guide, an authority
for certificates (pebble), and the repository. Everything else runs as the pages show it. Answers
to questions are typed: the password, once for each command that asks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pages
from machine import OFFLINE, Machine, commit

PASSWORD: Final = "secret"  # noqa: S105 - of a test
IPV4, IPV6 = "192.0.2.25", "2001:db8::25"
CLONE: Final = "/usr/local/src/minismtp"
CONFIGURATION: Final = "/etc/minismtp/minismtp.toml"
QUARANTINING: Final = """
from minismtp import Envelope, Message, hookimpl, plugin

@plugin
class Suspicious:
    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        if str(envelope.reverse_path).endswith("@spam.example"):
            message.quarantine("looks odd")
"""
_ASKS: Final = r"minismtp passwd|swaks .*--auth|doveadm auth test"
_PEBBLE: Final = """{"pebble": {"listenAddress": "127.0.0.1:14000",
"managementListenAddress": "127.0.0.1:15000", "certificate": "/etc/pebble/cert.pem",
"privateKey": "/etc/pebble/key.pem", "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "",
"externalAccountBindingRequired": false}}"""
_SELF_SIGNED: Final = (
    "cd {0}; openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out {2}"
    " -subj /CN={1} -addext subjectAltName=DNS:{1},IP:127.0.0.1"
)
_INTERNET: Final = f"""
ip address add {IPV4}/32 dev lo
ip address add {IPV6}/128 dev lo nodad
rm -f /etc/resolv.conf
echo nameserver 127.0.0.1 >/etc/resolv.conf
dnsmasq --listen-address=127.0.0.1 --bind-interfaces --no-resolv --no-hosts -C /etc/records.conf
git config --global safe.directory '*'
git config --global url./repository.insteadOf https://git.example.org/minismtp.git
"""
# What certbot asks a person.
_CERTBOT: Final = """
server = https://127.0.0.1:14000/dir
no-verify-ssl = True
agree-tos = True
register-unsafely-without-email = True
non-interactive = True
"""


class Newcomer:
    """Runs commands of pages; `said` has the output of each, `seconds` the time of each page."""

    def __init__(self, machine: Machine, repository: Path) -> None:
        self.machine = machine
        self.said: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.restored_queue = ""
        self._repository = repository
        self._directory = "/root"

    def walk(self) -> None:
        """Follow all pages."""
        self._bring_the_internet()
        for page in (self.readme, self.administrator, self.operator):
            began = time.monotonic()
            page()
            self.seconds[page.__name__] = round(time.monotonic() - began, 1)

    def do(self, command: str, *, status: int = 0, **replaced: str) -> str:
        """Run one command of a page, and return its output."""
        run = command
        for old, new in replaced.items():
            run = run.replace(old, new)
        typed = f"{PASSWORD}\n" if re.search(_ASKS, command) else ""
        script = f"cd {self._directory}; {{ {run}\n}} || test $? -eq {status}; pwd >/root/.pwd"
        said = self.machine.run("sh", "-euc", script, say=typed)
        self.said[command] = said
        self._directory = self.machine.run("cat", "/root/.pwd")
        return said

    def follow(self, page: str, heading: str, number: int = 0) -> None:
        """Run the commands of a block."""
        for command in pages.commands(pages.block(page, heading, number)):
            self.do(command)

    def start(self, name: str, command: str) -> None:
        """Run a command that does not end, until `stop`."""
        settings = [f"--setenv={name}={value}" for name, value in OFFLINE.items()]
        settings += ["--setenv=PIP_FIND_LINKS=/wheels", "--setenv=HOME=/root"]
        self.machine.run(
            *("systemd-run", f"--unit={name}", f"--working-directory={self._directory}"),
            *("--property=KillSignal=SIGINT", *settings, "sh", "-c", f"exec {command}"),
        )
        self.said[command] = ""
        self.machine.wait_until(lambda: ":2525 " in self.machine.run("ss", "-lnt"))

    def stop(self, name: str) -> None:
        """Press Ctrl-C."""
        self.machine.run("systemctl", "stop", name)

    def _bring_the_internet(self) -> None:
        machine = self.machine
        machine.write("/etc/pebble/p.json", _PEBBLE)
        machine.write("/etc/letsencrypt/cli.ini", _CERTBOT)
        # What is installed is new enough, because no package can be fetched.
        machine.write("/etc/apt/apt.conf.d/99offline", 'APT::Get::Upgrade "false";')
        machine.write("/etc/records.conf", "\n".join(_records()))
        machine.shell(_INTERNET + _SELF_SIGNED.format("/etc/pebble", "localhost", "cert.pem"))
        machine.shell(
            "systemd-run --unit=pebble --setenv=PEBBLE_VA_NOSLEEP=1"
            " --setenv=PEBBLE_WFE_NONCEREJECT=0 pebble -config /etc/pebble/p.json"
        )
        root = "curl --silent --fail --insecure https://127.0.0.1:15000/roots/0 || true"
        machine.client.load_verify_locations(cadata=machine.wait_until(lambda: machine.shell(root)))

    def readme(self) -> None:
        """Try the server without a configuration, the first plugin, and a mail server."""
        machine = self.machine
        machine.run("git", "clone", "--quiet", "/repository", "/root/minismtp")
        self._directory = "/root/minismtp"
        run, _test = pages.commands(pages.block("README", "Try it"))
        self.start("try", run)
        self.follow("README", "Try it", 1)
        self.stop("try")
        plugin, configuration = (
            pages.block("README", "The first plugin", language=name) for name in ("python", "toml")
        )
        machine.write("/root/minismtp/try/plugins/spam_flag.py", plugin)
        machine.write("/root/minismtp/try/minismtp.toml", configuration)
        check, serve = pages.commands(pages.block("README", "The first plugin"))
        self.do(check)
        self.start("first", serve)
        by_curl, by_swaks = pages.commands(pages.block("README", "The first plugin", 1))
        self.do(by_curl, status=8)
        self.do(by_swaks, status=26)
        self.stop("first")
        self.follow("README", "A mail server")
        machine.write(CONFIGURATION, pages.block("README", "A mail server", language="toml"))
        machine.shell(_SELF_SIGNED.format("/etc/minismtp/tls", "mx.example.org", "fullchain.pem"))
        self.follow("README", "A mail server", 1)
        self.follow("README", "A mail server", 2)
        _install, uninstall, purge = pages.commands(pages.block("systemd", "Installing"))
        self.do(uninstall)
        machine.run("test", "-e", CONFIGURATION)
        self.do(purge)

    def administrator(self) -> None:
        """Follow the administrator's guide up to IMAP, and add a second domain."""
        self._directory = "/"
        self.follow("administrator", "Install")
        self.follow("administrator", "DNS")
        [check] = pages.commands(pages.block("administrator", "Configure"))
        without_certificate = self.do(check, status=78)
        assert "fullchain.pem" in without_certificate
        for number in (0, 1):
            self.follow("administrator", "TLS", number)
        self.follow("administrator", "Users")
        for number in (0, 1):
            self.follow("administrator", "Start", number)
        relay = '[[plugins]]\nuse = "relay"\n'
        self._edit(relay, pages.block("administrator", "Relaying", language="toml"))
        debian13 = int(self.machine.run("cut", "-d.", "-f1", "/etc/debian_version")) >= 13
        dovecot = pages.block("administrator", "Reading mail", int(not debian13), "dovecot")
        self.machine.write("/etc/dovecot/dovecot.conf", dovecot)
        self.follow("administrator", "Reading mail")

    def _edit(self, old: str, new: str) -> None:
        text = self.machine.run("cat", CONFIGURATION) + "\n"
        assert old in text
        self.machine.write(CONFIGURATION, text.replace(old, new))
        self.machine.run("systemctl", "reload", "minismtp")

    def operator(self) -> None:
        """Follow the pages of a server that runs: another domain, sockets, keys, Prometheus."""
        self._edit('domains = ["example.org"]', 'domains = ["example.org", "example.com"]')
        self.do("minismtp passwd --scheme argon2id /etc/minismtp/passwords bob@example.com")
        self.follow("sending", "DKIM")
        self.follow("sending", "Forwarding")
        self.machine.run("systemctl", "start", "prometheus")
        self.follow("monitoring", "Prometheus")
        for command in pages.commands(pages.block("systemd", "The journal")):
            run = f"timeout 1 {command}" if command.endswith(" -f") else command
            self.said[command] = self.do(run, status=124 if command.endswith(" -f") else 1)
        self._explain()
        self._upgrade()
        self._back_up()
        self.follow("systemd", "Sockets held by systemd")

    def _explain(self) -> None:
        self.machine.write("/etc/minismtp/plugins/suspicious.py", QUARANTINING)
        self.machine.run("chgrp", "minismtp", "/etc/minismtp/plugins/suspicious.py")
        maildir = '[[plugins]]\nuse = "maildir"\n'
        added = "".join(f'[[plugins]]\nuse = "{name}"\n\n' for name in ("suspicious", "quarantine"))
        self._edit(maildir, added + maildir)
        for local in ("alice", "bob"):
            self.machine.send(f"{local}@example.org", sender="a@spam.example")
        listed = self.machine.run("minismtp", "quarantine", "list")
        found = re.findall(r"^\w{12}\.\d+", listed, re.MULTILINE)
        [explain] = pages.commands(pages.block("insight", "One message"))
        example = "8a1f0c5d7e21.1"
        self.do(explain, **{example: found[0]})
        for command in pages.commands(pages.block("quarantine", "")):
            self.do(command, **{example: found[0]})

    def _upgrade(self) -> None:
        face = self._repository / "minismtp" / "__init__.py"
        text = face.read_text()
        assert '__version__ = "1.0.0"' in text
        face.write_text(text.replace('__version__ = "1.0.0"', '__version__ = "1.0.1"'))
        commit(self._repository, "the next version")
        self.follow("administrator", "Changes")

    def _back_up(self) -> None:
        self.machine.send("waits@example.net", host="127.0.0.1")
        for number in (0, 1):
            self.follow("administrator", "Backup", number)
        self.restored_queue = self.machine.run("minismtp", "queue", "list")
        self.machine.run("minismtp", "queue", "remove", "--to-domain", "example.net")


_COLUMNS: Final = ("name", "type", "value", "purpose")  # of the records in the guide


def _records() -> list[str]:
    """Return the lines of dnsmasq for the table of the guide."""
    made: dict[str, Callable[[str, str], str]] = {
        "A, AAAA": lambda name, _: f"host-record={name},{IPV4},{IPV6}",
        "MX": lambda name, value: f"mx-host={name},{value.split()[1].rstrip('.')},10",
        "PTR": lambda _name, _value: "",  # by host-record
        "TXT": lambda name, value: f"txt-record={name},{value}",
        "SRV": lambda name, value: f"srv-host={name},{value.split()[3].rstrip('.')},465",
    }
    rows = [row for row in pages.rows("administrator", "DNS") if len(row) == len(_COLUMNS)]
    return [option for name, kind, value, _ in rows if (option := made[kind](name, value))]
