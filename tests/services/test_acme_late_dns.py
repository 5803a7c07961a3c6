"""Names whose records in the DNS come later than the server, so that the authority has to wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from authority import Authority, hurry, serving_challenges
from nameserver import Records, running, silent
from snippets import CLEAR, listener

from minismtp import Resolver, SocketAddress
from minismtp.config import Config
from minismtp.services.acme import get_certificate
from minismtp.services.acme_files import AcmeFiles, State, ensure_certificate
from minismtp.services.acme_schedule import (
    MOST_LOOKS,
    AbsentError,
    CheckError,
    is_self_signed,
    plan,
    waits_for_dns,
)
from minismtp.services.certificate_file import Certificate

HOST: Final = "mx.example.org"
LATE: Final = "mta-sts.example.org"
ADDRESS: Final = ["192.0.2.1"]


@dataclass
class Host:
    """A server whose resolver has `records`. `said` has the steps of its attempts."""

    config: Config
    records: Records
    said: list[str]

    def get(self, resolver: SocketAddress | None = None) -> Certificate:
        """Make an attempt."""
        asked = Resolver([resolver or self.records.address])
        return get_certificate(self.config, self.said.append, asked)

    def publish(self, *names: str) -> None:
        """Add addresses of names to the DNS."""
        self.records.known |= {(name, "A"): ADDRESS for name in names}

    @property
    def state(self) -> State:
        """What became of the last attempt."""
        return AcmeFiles.of(self.config).state()

    @property
    def pause(self) -> float:
        """The seconds to the next attempt."""
        assert self.config.tls.acme is not None
        present = AcmeFiles.of(self.config).present()
        return plan(self.config.tls.acme, present, self.state).at - time.time()

    @property
    def orders(self) -> int:
        """How often the authority was asked for a certificate."""
        return sum(line.startswith("ordering a certificate for") for line in self.said)


@pytest.fixture
def refused() -> set[str]:
    """Return the names under which nothing is served to the authority."""
    return set()


@pytest.fixture
def host(
    tmp_path: Path, authority: Authority, refused: set[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Host]]:
    """Return a function that makes a host for names, with a certificate of its own."""
    hurry(monkeypatch)
    for name in ("_LONGEST", "_LONGEST_QUESTION", "_LONGEST_DIRECT_QUESTION"):
        monkeypatch.setattr(f"minismtp.services.acme_addresses.{name}", 60.0)
    place = tmp_path / "challenges"
    place.mkdir()

    def make(*names: str) -> Host:
        path = tmp_path / "minismtp.toml"
        table = authority.table(place, names=" ".join(names))
        top = f'hostname = "{HOST}"\nstate_directory = "state"\n'
        path.write_text(f"{top}{listener('smtp', CLEAR)}{table}")
        config = Config.load(path)
        config.state_directory.mkdir(exist_ok=True)
        ensure_certificate(config)
        return Host(config, records, [])

    with running(Records({})) as records, serving_challenges(authority.web_port, place, refused):
        yield make


def test_certificate_comes_with_the_first_look_that_finds_the_record(
    host: Callable[..., Host], authority: Authority
) -> None:
    late = host(HOST)
    before = authority.log.read_bytes()
    with pytest.raises(AbsentError, match=rf"^no address in the DNS yet: {HOST}$"):
        late.get()
    assert authority.log.read_bytes() == before
    assert 30 < late.pause <= 75
    assert (late.state.failures, late.state.looks) == (0, 1)
    assert late.state.error == f"no address in the DNS yet: {HOST}"
    assert waits_for_dns(late.state)
    late.publish(HOST)
    assert late.get().names == (HOST,)
    assert late.orders == 1
    assert (late.state.error, late.state.looks) == ("", 0)
    assert late.pause > 86_400


def test_name_without_an_address_is_left_out_of_the_order(host: Callable[..., Host]) -> None:
    late = host(HOST, LATE)
    late.publish(HOST)
    assert late.get().names == (HOST,)
    assert late.state.error == f"no address in the DNS yet: {LATE}"
    assert late.state.failures == 0
    assert 30 < late.pause <= 75
    with pytest.raises(AbsentError, match=LATE):
        late.get()
    assert 90 < late.pause <= 150
    assert late.orders == 1
    late.publish(LATE)
    assert {*late.get().names} == {HOST, LATE}
    assert late.orders == 2
    assert (late.state.error, late.state.looks) == ("", 0)


def test_authority_that_sees_another_dns_is_asked_after_some_looks(
    host: Callable[..., Host],
) -> None:
    late = host(HOST)
    pauses = []
    for _ in range(MOST_LOOKS):
        with pytest.raises(AbsentError):
            late.get()
        pauses.append(late.pause)
    assert pauses[0] <= 75
    assert max(pauses) <= 375
    assert 1_200 < sum(pauses) <= 1.25 * 1_320
    assert late.orders == 0
    assert late.get().names == (HOST,)
    assert late.state.error == ""


def test_refusal_after_the_looks_waits_as_ever(
    host: Callable[..., Host], refused: set[str]
) -> None:
    refused.add(HOST)
    late = host(HOST)
    for _ in range(MOST_LOOKS):
        with pytest.raises(AbsentError):
            late.get()
    for least, number in ((1_200, 1), (2_400, 2)):
        with pytest.raises(CheckError):
            late.get()
        assert least - 60 < late.pause <= 1.25 * least
        assert late.state.failures == number
        assert not waits_for_dns(late.state)
    assert late.orders == 2


def test_other_names_begin_with_the_first_look(host: Callable[..., Host]) -> None:
    late = host(HOST)
    for _ in range(MOST_LOOKS):
        with pytest.raises(AbsentError):
            late.get()
    other = host("mail.example.org")
    assert other.pause < 0
    with pytest.raises(AbsentError):
        other.get()
    assert other.state.looks == 1


def test_failure_of_the_authority_is_not_taken_for_a_late_record(
    host: Callable[..., Host], refused: set[str]
) -> None:
    late = host(HOST, LATE)
    with pytest.raises(AbsentError):
        late.get()
    late.publish(HOST)
    refused.add(HOST)
    with pytest.raises(CheckError):
        late.get()
    assert not waits_for_dns(late.state)
    assert late.state.failures == 1
    assert late.pause > 1_100


def test_resolver_that_does_not_answer_delays_no_certificate(
    host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.services.acme_addresses._LONGEST", 0.2)
    with silent() as address:
        assert host(HOST).get(address).names == (HOST,)


def test_renewal_asks_the_dns_for_no_name_of_the_certificate(host: Callable[..., Host]) -> None:
    late = host(HOST)
    late.publish(HOST)
    late.get()
    late.records.known.clear()
    late.records.asked.clear()
    assert late.get().names == (HOST,)
    assert late.orders == 2
    assert not late.records.asked


def test_attempt_by_hand_asks_the_authority_at_once(host: Callable[..., Host]) -> None:
    late = host(HOST)
    with pytest.raises(AbsentError):
        late.get()
    found = get_certificate(late.config)
    assert not is_self_signed(found)
    assert late.state.looks == 0
