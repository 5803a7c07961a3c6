"""The time of `minismtp import postfix` grows with the size of the tables, and no faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from pumps import grows_too_fast

from minismtp.cli.import_postfix.mapping import migrated
from minismtp.cli.postfix_files.directory import PostfixDirectory

SENDERS: Final = "smtpd_sender_restrictions"
#: For a number of domains: main.cf, and the lines of the table `hash:.../table`.
HOSTS: Final[dict[str, Callable[[int], tuple[str, list[str]]]]] = {
    "mailboxes": lambda count: (
        f"virtual_mailbox_domains = {names(count)}\nvirtual_mailbox_maps = hash:/table",
        [f"alice@d{number}.example x" for number in range(count)],
    ),
    "aliases": lambda count: (
        f"virtual_alias_domains = {names(count)}\nvirtual_alias_maps = hash:/table",
        [f"alice@d{number}.example bob@elsewhere.example" for number in range(count)],
    ),
    "aliases of which the last differs": lambda count: (
        f"virtual_alias_domains = {names(count)}\nvirtual_alias_maps = hash:/table",
        [f"a@d{n}.example {'c' if n == count - 1 else 'b'}@x.example" for n in range(count)],
    ),
    "relayed": lambda count: (
        f"virtual_mailbox_domains = {names(count)}\nrelay_domains = hash:/table",
        [f"r{number}.example x" for number in range(count)],
    ),
    "rules and networks": lambda count: (
        f"mynetworks = {networks(count)}\n{SENDERS} = check_sender_access hash:/table",
        [f"a@d{number}.example REJECT" for number in range(count)],
    ),
}


SIZES: Final = {"rules and networks": 800}  # there are 1,000 rules at most


def names(count: int) -> str:
    return " ".join(f"d{number}.example" for number in range(count))


def networks(count: int) -> str:
    return " ".join(f"10.{number // 250}.{number % 250}.0/24" for number in range(count))


@pytest.mark.parametrize("host", HOSTS)
def test_many_domains_take_linear_time(host: str, tmp_path: Path) -> None:
    def work(count: int) -> Callable[[], object]:
        directory = tmp_path / str(count)
        if not directory.exists():
            main_cf, table = HOSTS[host](count)
            directory.mkdir()
            text = main_cf.replace("hash:/table", f"hash:{directory}/table")
            (directory / "main.cf").write_text(f"myhostname = mx.example.org\n{text}\n")
            (directory / "table").write_text("\n".join(table))
        found = PostfixDirectory.read(directory)
        return lambda: migrated(found, Path("/var/lib/minismtp"))

    assert not grows_too_fast(work, SIZES.get(host, 8000), short=0.005)
