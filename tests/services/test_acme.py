"""Certificates of an authority (RFC 8555), mostly of a real one."""

from __future__ import annotations

import datetime as dt
import json
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest
from authority import (
    EAB_ID,
    EAB_KEY,
    Authority,
    hurry,
    running_authority,
    serving_challenges,
    stub_authority,
)
from snippets import CLEAR, listener

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.services import acme
from minismtp.services.acme import ask_for_renewal, get_certificate
from minismtp.services.acme_challenges import Challenges
from minismtp.services.acme_files import (
    AcmeFiles,
    BusyError,
    State,
    ensure_certificate,
    requested,
)
from minismtp.services.acme_schedule import (
    AcmeError,
    Failure,
    is_self_signed,
    plan,
    renewal_time,
    wait,
)
from minismtp.services.acme_tls_challenges import TlsChallenges
from minismtp.services.certificate_file import certificates_of, common_name
from minismtp.services.self_signed import self_signed
from minismtp.services.tls import server_context

DAY: Final = 86_400.0
REFUSED: Final = Failure.REFUSED
UNREACHED: Final = Failure.UNREACHED
FULL: Final = """
import resource, sys
from pathlib import Path
from minismtp.config import Config
from minismtp.services.acme import get_certificate

config = Config.load(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    get_certificate(config)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def answers(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Serve the answers to challenges, and return the names that the authority asked for."""
    hurry(monkeypatch)
    directory = tmp_path / "state" / "acme" / "challenges"
    with serving_challenges(authority.web_port, directory) as asked:
        yield asked


def configured(directory: Path, table: str) -> Config:
    path = directory / "minismtp.toml"
    path.write_text(
        'hostname = "mx.example.org"\nstate_directory = "state"\n'
        '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\n' + table
    )
    (directory / "state" / "acme" / "challenges").mkdir(parents=True, exist_ok=True)
    return Config.load(path)


def of(authority: Authority, directory: Path, *lines: str, names: str = "mx.example.org") -> Config:
    place = directory / "state" / "acme" / "challenges"
    return configured(directory, authority.table(place, *lines, names=names))


def failed(config: Config) -> str:
    """Try to get a certificate, and return why it failed. The one in use must not change."""
    ensure_certificate(config)
    files = AcmeFiles.of(config)
    before = files.certificate.read_bytes()
    with pytest.raises(AcmeError) as failure:
        get_certificate(config)
    assert files.certificate.read_bytes() == before
    assert "\n" not in str(failure.value)
    assert not [*files.directory.glob("next*"), *files.directory.glob("challenges/*")]
    assert files.state().error == str(failure.value)
    return str(failure.value)


def pause(config: Config) -> float:
    """Return the seconds from now to the next attempt."""
    files = AcmeFiles.of(config)
    assert config.tls.acme is not None
    return plan(config.tls.acme, files.present(), files.state()).at - time.time()


def test_certificate_for_several_names_arrives(
    tmp_path: Path, authority: Authority, answers: list[str]
) -> None:
    config = of(authority, tmp_path, names="mx.example.org mta-sts.example.org")
    files, said = AcmeFiles.of(config), list[str]()
    got = get_certificate(config, said.append)
    assert {*got.names} == {"mx.example.org", "mta-sts.example.org"} == {*answers}
    assert common_name(got.issuer).startswith("Pebble Intermediate")
    assert len(certificates_of(files.certificate)) > 1
    server_context(config.tls)  # the key fits
    modes = {stat.S_IMODE(each.stat().st_mode) for each in files.directory.glob("*.*")}
    assert modes == {0o600}
    assert not [*files.directory.glob("challenges/*"), *files.directory.glob("next*")]
    assert said[0].startswith("logging in at https://localhost")
    assert pause(config) > DAY


def test_account_is_used_again_and_made_again_if_the_authority_forgot_it(
    tmp_path: Path, authority: Authority, answers: list[str]
) -> None:
    config = of(authority, tmp_path)
    files = AcmeFiles.of(config)
    get_certificate(config)
    first, key = files.state(), files.certificate.read_bytes()
    get_certificate(config)
    assert files.state().account == first.account
    assert files.certificate.read_bytes() != key
    forgotten = f"https://localhost:{authority.port}/my-account/0"
    files.write_state(State(account=forgotten, account_directory=first.account_directory))
    get_certificate(config)
    assert files.state().account == first.account
    files.account_key.unlink()
    files.write_state(State())
    get_certificate(config)
    assert files.state().account != first.account
    assert answers == ["mx.example.org"] * len(answers)


def test_key_stays_the_same_until_another_is_wanted(
    tmp_path: Path, authority: Authority, answers: list[str]
) -> None:
    config = of(authority, tmp_path)
    file = AcmeFiles.of(config).certificate

    def key() -> bytes:
        return file.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")[0]

    ensure_certificate(config)
    first = key()
    get_certificate(config)
    assert key() == first
    get_certificate(config, new_key=True)
    assert key() != first
    server_context(config.tls)
    second = key()
    get_certificate(of(authority, tmp_path, 'key_type = "rsa"'))
    assert len(key()) > 1_600
    file.write_bytes(second.replace(b"M", b"!"))  # damaged
    get_certificate(config)
    server_context(config.tls)
    assert answers


def test_authority_without_suggestions_is_asked_once_a_day_at_most(
    tmp_path: Path, authority: Authority, answers: list[str]
) -> None:
    config = of(authority, tmp_path)
    get_certificate(config)
    state = ask_for_renewal(config)
    assert state.suggested == 0.0
    assert 3_600.0 <= state.ask_after - time.time() <= DAY
    assert ask_for_renewal(config) == state
    assert answers


def test_authority_that_is_down_is_tried_again_soon(tmp_path: Path, authority: Authority) -> None:
    down = replace(authority, port=authority.port + 40_000 if authority.port < 20_000 else 1)
    config = of(down, tmp_path)
    assert failed(config) == (
        f"https://localhost:{down.port}/dir cannot be reached: Connection refused"
    )
    assert 55 < pause(config) <= 75
    failed(config)
    assert 115 < pause(config) <= 150


def test_name_that_the_authority_cannot_check_waits_longer(
    tmp_path: Path, authority: Authority
) -> None:
    config = of(authority, tmp_path)
    text = failed(config)
    assert text.startswith("the authority cannot check the names: mx.example.org: ")
    assert "connection refused" in text
    assert 1_195 < pause(config) <= 1_500
    failed(config)
    assert 2_395 < pause(config) <= 3_000
    assert pause(of(authority, tmp_path, names="mail.example.org")) < 0  # something was changed


def test_answer_of_another_server_is_refused(tmp_path: Path, authority: Authority) -> None:
    with serving_challenges(authority.web_port, tmp_path):
        assert "mx.example.org: " in failed(of(authority, tmp_path))


@pytest.mark.parametrize("moment", ["9" * 12, "9" * 5_000, "-1", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_moment_without_sense_is_no_failure_of_its_own(moment: str, tmp_path: Path) -> None:
    with stub_authority(tmp_path) as stub:
        stub.headers = {"Retry-After": moment}
        stub.answer = b'{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "no"}'
        config = of(Authority(stub.port, 0, 0, stub.trusted, tmp_path), tmp_path)
        assert failed(config) == "the authority refuses: no"
    assert pause(config) <= 7 * 1.25 * DAY


def test_limit_of_the_authority_is_kept(tmp_path: Path) -> None:
    with stub_authority(tmp_path) as stub:
        stub.headers = {"Retry-After": "7200"}
        problem = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too\nmany"}
        stub.answer = json.dumps(problem).encode()
        config = of(Authority(stub.port, 0, 0, stub.trusted, tmp_path), tmp_path)
        assert failed(config) == r"the authority refuses: too\nmany"
    assert 7_195 < pause(config) <= 9_000


@pytest.mark.parametrize(
    ("status", "answer", "text"),
    [
        (
            200,
            b"x" * ((1 << 20) + 1),
            "cannot be reached: the answer is longer than 1048576 octets",
        ),
        (200, b"[]", "makes no sense"),
        (200, b'{"identifiers": 3}', "makes no sense"),
        (500, b"oops", "makes no sense"),
        (200, b"\xff{", "is no JSON"),
        (200, b"[" * 100_000, "makes no sense"),
    ],
    ids=["long", "list", "number", "500", "no JSON", "deep"],
)
def test_answer_without_sense_is_a_failure(
    status: int, answer: bytes, text: str, tmp_path: Path
) -> None:
    with stub_authority(tmp_path) as stub:
        stub.status, stub.answer = status, answer
        config = of(Authority(stub.port, 0, 0, stub.trusted, tmp_path), tmp_path)
        assert text in failed(config)


@pytest.mark.parametrize("days", [-1, 1], ids=["expired", "not yet valid"])
def test_clock_is_named_if_the_certificate_of_the_authority_is_out_of_time(
    days: int, tmp_path: Path
) -> None:
    when = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    limits = {"not_after": when} if days < 0 else {"not_before": when}
    with stub_authority(tmp_path, **limits) as stub:
        config = of(Authority(stub.port, 0, 0, stub.trusted, tmp_path), tmp_path)
        text = failed(config)
    assert text.endswith(
        f"certificate {'has expired' if days < 0 else 'is not yet valid'}; is the clock right?"
    )


def test_certificate_that_has_expired_by_our_clock_is_not_used(
    tmp_path: Path, authority: Authority, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = of(authority, tmp_path)
    ahead = time.time() + 20 * 365 * DAY
    monkeypatch.setattr("minismtp.services.acme.time", SimpleNamespace(time=lambda: ahead))
    assert failed(config) == "the new certificate has expired already; is the clock right?"
    assert AcmeFiles.of(config).state().wait_until >= ahead + 1_200
    assert answers


def test_authority_that_is_not_trusted_is_not_asked(tmp_path: Path, authority: Authority) -> None:
    config = of(authority, tmp_path)
    assert config.tls.acme is not None
    system = replace(config.tls.acme, directory_ca=None)
    config = replace(config, tls=replace(config.tls, acme=system))
    assert "its certificate is not trusted: " in failed(config)


@pytest.mark.parametrize("size", [0, 2_000], ids=["nothing", "state"])
def test_full_disk_is_noticed_before_the_authority_is_asked(
    size: int, tmp_path: Path, authority: Authority
) -> None:
    config = of(authority, tmp_path)
    ensure_certificate(config)
    before = AcmeFiles.of(config).certificate.read_bytes()
    asked = authority.log.read_bytes().count(b"/dir")
    done = subprocess.run(
        [sys.executable, "-c", FULL, config.file, str(size)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"AcmeError {AcmeFiles.of(config).directory}: File too large\n"
    assert authority.log.read_bytes().count(b"/dir") == asked
    assert AcmeFiles.of(config).certificate.read_bytes() == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_certificate_for_another_key_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, certificate = self_signed(["mx.example.org"])
    issue = "minismtp.services.acme_client.Authority.issue"
    monkeypatch.setattr(issue, lambda *_, **__: certificate)
    with stub_authority(tmp_path) as stub:
        config = of(Authority(stub.port, 0, 0, stub.trusted, tmp_path), tmp_path)
        problem = "the new certificate cannot be used with its key: KEY_VALUES_MISMATCH"
        assert failed(config) == problem
    assert pause(config) > 1_195


def test_account_key_that_cannot_be_used_is_named(tmp_path: Path, authority: Authority) -> None:
    config = of(authority, tmp_path)
    key = AcmeFiles.of(config).account_key
    key.mkdir()
    assert failed(config) == f"{key}: Is a directory"
    key.rmdir()
    key.write_text("no key")
    assert failed(config).startswith(f"{key} contains no key: ")
    key.chmod(0)
    if os.geteuid() != 0:
        assert failed(config).startswith(f"{key}: Permission denied; expected the server's user")


def test_account_is_bound_to_one_outside(
    tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    with running_authority(tmp_path, require_program, eab=True) as authority:
        text = failed(of(authority, tmp_path))
        assert text.startswith("the authority refuses: ")
        file = tmp_path / "eab.key"
        lines = (f'eab_key_id = "{EAB_ID}"', f'eab_key_file = "{file}"')
        config = of(authority, tmp_path, *lines)
        assert failed(config) == f"eab_key_file {file}: No such file or directory"
        file.write_text("!")
        assert failed(config).startswith(f"eab_key_file {file} has no key in base64url: ")
        file.write_text(f"{EAB_KEY}\n")
        with serving_challenges(authority.web_port, AcmeFiles.of(config).directory / "challenges"):
            assert get_certificate(config).names == ("mx.example.org",)


def test_attempt_that_is_cut_off_waits_like_a_failure(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = of(authority, tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(acme, "Authority", die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            get_certificate(config)
    state = AcmeFiles.of(config).state()
    assert (state.error, state.failures) == ("the attempt was interrupted", 2)
    assert pause(config) > 2_395


def test_one_process_at_a_time_gets_a_certificate(tmp_path: Path, authority: Authority) -> None:
    config = of(authority, tmp_path)
    with AcmeFiles.of(config).locked(), pytest.raises(BusyError):
        get_certificate(config)


def test_server_signs_a_certificate_itself_until_there_is_one(
    tmp_path: Path, authority: Authority
) -> None:
    config = of(authority, tmp_path)
    assert ensure_certificate(config)
    assert not ensure_certificate(config)
    (found,) = certificates_of(AcmeFiles.of(config).certificate)
    assert is_self_signed(found)
    assert found.is_for("mx.example.org")
    assert found.begin < time.time() < found.end
    server_context(config.tls)
    assert pause(config) < 0


def test_certificate_that_cannot_be_written_stops_the_start(
    tmp_path: Path, authority: Authority
) -> None:
    config = of(authority, tmp_path)
    files = AcmeFiles.of(config)
    (files.directory / "challenges").rmdir()
    files.directory.rmdir()
    files.directory.write_text("")
    with pytest.raises(ConfigError, match=r"tls\.acme.*certificate\.pem cannot be written: "):
        ensure_certificate(config)


def test_missing_library_is_named(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs the module 'acme'; .*minismtp\[acme\]"):
        ensure_certificate(of(authority, tmp_path))


def test_renewal_is_spread_over_a_part_of_the_life_and_stays_the_same(
    tmp_path: Path, authority: Authority
) -> None:
    config = of(authority, tmp_path)
    ensure_certificate(config)
    found = certificates_of(AcmeFiles.of(config).certificate)[0]
    begins = [found.begin + number for number in range(1_000)]
    ninety = [replace(found, begin=at, end=at + 90 * DAY) for at in begins]
    days = [(renewal_time(each) - each.begin) / DAY for each in ninety]
    assert 54 <= min(days) < 54.5
    assert 59.5 < max(days) <= 60
    assert renewal_time(ninety[3]) == renewal_time(replace(ninety[3]))


def test_plan_follows_what_is_known(tmp_path: Path, authority: Authority) -> None:
    config = of(authority, tmp_path)
    table = config.tls.acme
    assert table is not None
    ensure_certificate(config)
    own = certificates_of(AcmeFiles.of(config).certificate)[0]
    now = time.time()
    theirs = replace(own, issuer=b"another", begin=now, end=now + 90 * DAY)
    assert plan(table, None, State()).at == 0
    assert plan(table, own, State()).at == 0
    assert plan(table, replace(theirs, names=("x.example",)), State()).at == 0
    assert plan(table, theirs, State()).at == renewal_time(theirs)
    assert plan(table, theirs, State(issued="another authority")).at == 0
    wanted = requested(table)
    known = State(issued=wanted, request=wanted, renewed=now)
    assert plan(table, theirs, known).at == renewal_time(theirs)
    struct = {each: getattr(known, each) for each in known.__struct_fields__}
    suggested = State(**(struct | {"suggested": now + 40 * DAY}))
    assert plan(table, theirs, suggested).at == now + 40 * DAY
    hasty = State(**(struct | {"suggested": now - DAY}))
    assert plan(table, theirs, hasty).at == pytest.approx(now + 9 * DAY)
    failing = State(**(struct | {"error": "no", "wait_until": now + 99 * DAY}))
    assert plan(table, theirs, failing).at == now + 99 * DAY
    changed = replace(table, names=["mx.example.org", "b.example.org"])
    assert plan(changed, theirs, failing).at == 0
    ahead = State(**(struct | {"error": "no", "attempted": now + DAY, "wait_until": now + 2 * DAY}))
    assert plan(table, own, ahead).at == 0
    late = State(**(struct | {"suggested": theirs.end + DAY}))
    assert plan(table, theirs, late).at == renewal_time(theirs)


@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_waits_stay_below_the_limits_of_authorities(draw: float) -> None:
    waits = [wait(REFUSED, number, draw=lambda: draw) for number in range(1, 40)]
    starts = [sum(waits[:number]) for number in range(len(waits))]
    # Let's Encrypt: 5 failed checks of a name an hour; an attempt checks it in two ways
    assert 2 * sum(at < 3_600 for at in starts) <= 5
    assert max(waits) <= 1.25 * DAY
    assert waits[0] >= 1_200
    assert max(wait(UNREACHED, number, draw=lambda: draw) for number in (1, 9, 10_000)) <= 4_500
    assert wait(UNREACHED, 1, 1e12, draw=lambda: draw) <= 7 * 1.25 * DAY


def test_damaged_state_counts_as_none(tmp_path: Path) -> None:
    files = AcmeFiles(tmp_path)
    odd = ('{"failures": "x"}', '{"unknown": 1}', '{"wait_until": 1e300}', '{"attempted": -1}')
    for text in ("", "{", "[]", *odd, "\x00" * 100_000):
        (tmp_path / "state.json").write_text(text)
        assert files.state() == State()


def test_state_directory_that_was_moved_is_not_made_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(FileNotFoundError), AcmeFiles(state / "acme").locked():
        pass
    with pytest.raises(FileNotFoundError):
        Challenges(state).put("token", "token.thumbprint")
    with pytest.raises(FileNotFoundError):
        TlsChallenges(state).put("mx.example.org", "token.thumbprint")
    path = tmp_path / "minismtp.toml"
    listeners = listener("smtp", CLEAR) + listener("web", 'kind = "web"')
    table = "[tls.acme]\nagree_terms = true\n"
    path.write_text(f'hostname = "mx.example.org"\nstate_directory = "state"\n{listeners}{table}')
    with pytest.raises(ConfigError, match=r"certificate\.pem cannot be written: No such file"):
        ensure_certificate(Config.load(path))
    assert not state.exists()
