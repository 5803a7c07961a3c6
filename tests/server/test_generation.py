"""What the supervisor prepares for the processes of a generation."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
from minismtp.config import Config
from minismtp.server.generation import Generation
text = f'hostname = "mx.example.org"\\n[[listeners]]\\nname = "mx"\\ntls = "none"\\n{sys.argv[1]}'
Generation(Config.parse(text, Path("minismtp.toml")), {}, wanted=1, begun=0.0)
print("dns.resolver" in sys.modules)
"""
WEB = '[[listeners]]\nname = "web"\nkind = "web"\naddress = "127.0.0.1:80"\n'


@pytest.mark.parametrize(
    ("listener", "expected"),
    [
        ('address = "*:25"', True),
        ('address = "127.0.0.1:25"', False),
        ('address = "127.0.0.1:25"\nproxy_protocol = ["192.0.2.0/24"]', True),
        (f'address = "127.0.0.1:25"\n{WEB}[tls.acme]\nagree_terms = true\n', True),
    ],
    ids=["public", "local", "behind a balancer", "certificate"],
)
def test_dnspython_is_imported_before_the_fork_if_strangers_can_connect(
    listener: str, expected: bool
) -> None:
    """Each process would take 3 MB for it at its first question."""
    command = [sys.executable, "-c", SCRIPT, listener]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n"
