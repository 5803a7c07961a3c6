"""Logins against a file of hashes."""

import base64
import hashlib
import itertools
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minismtp_plugins.password_file import PasswordFile, _Users
from snippets import MX

from minismtp import Credentials, Defer, folded_name
from minismtp.cli.check import check
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.smtp.sasl import make_key
from minismtp.testing import Dialogue
from minismtp.values.durable_files import unusable_files
from minismtp.values.passwords import hash_password


def cheap(password: str, log_n: int = 1) -> str:
    """Return a stored string that costs nothing to check."""
    key = hashlib.scrypt(password.encode(), salt=b"salt", n=1 << log_n, r=1, p=1, dklen=32)
    return f"$scrypt$ln={log_n},r=1,p=1$c2FsdA${b64encode(key).decode()}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    path.write_text(f"# people\n\nalice:{cheap('apple')}\n Bob : {cheap('pear', 2)} \n")
    return path


@pytest.fixture
def _seconds_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "minismtp.values.durable_files.monotonic", itertools.count(10**9, 2).__next__
    )


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the cost of every scrypt that runs from now on."""
    found: list[int] = []
    real: Callable[..., bytes] = hashlib.scrypt

    def scrypt(password: bytes, **options: int) -> bytes:
        found.append(options["n"])
        return real(password, **options)

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    return found


@pytest.mark.parametrize(("user", "password"), [("alice", "apple"), ("Bob", "pear")])
def test_right_password_gives_the_user_name(path: Path, user: str, password: str) -> None:
    plugin = PasswordFile(path=path)
    assert plugin.authenticate(Credentials("PLAIN", user, password)) == user


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("alice", "pear"),
        ("alice", ""),
        ("alice", "apple "),
        ("carol", "apple"),
        ("", "apple"),
        ("# people", "apple"),
        ("\udc80", "apple"),
    ],
)
def test_wrong_password_or_user_gives_no_opinion(path: Path, user: str, password: str) -> None:
    assert PasswordFile(path=path).authenticate(Credentials("LOGIN", user, password)) is None


PEOPLE = (
    "alice",
    "Bob",
    "b\u00f6b",
    "stra\u00dfe",
    "carol@stra\u00dfe.example",
    "Eve",
    "EVE",
    "cafe\u0301",
)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Return a file in which each user's password is the name."""
    path = tmp_path / "people"
    path.write_text("".join(f"{name}:{cheap(name)}:{make_key(name).text}\n" for name in PEOPLE))
    return path


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        *((name, name) for name in PEOPLE),
        ("ALICE", "alice"),
        ("\uff21\uff4c\uff29\uff43\uff25", "alice"),
        (" Alice ", "alice"),
        ("bob", "Bob"),
        ("bo\u0308b", "b\u00f6b"),
        ("BO\u0308B", "b\u00f6b"),
        ("B\u00d6B", "b\u00f6b"),
        ("STRA\u1e9eE", "stra\u00dfe"),
        ("Carol@STRA\u00dfE.example", "carol@stra\u00dfe.example"),
        ("carol@xn--strae-oqa.example", "carol@stra\u00dfe.example"),
        ("CAROL@XN--STRAE-OQA.Example.", "carol@stra\u00dfe.example"),
        ("CAF\u00c9", "cafe\u0301"),
    ],
    ids=ascii,
)
def test_user_has_the_name_of_the_file_however_it_was_typed(
    people: Path, typed: str, name: str
) -> None:
    plugin = PasswordFile(path=people)
    assert plugin.authenticate(Credentials("PLAIN", typed, name)) == name
    assert plugin.authenticate(Credentials("PLAIN", typed, name, name)) == name
    assert plugin.authenticate(Credentials("PLAIN", typed, name, "mallory")) is None
    assert plugin.authenticate(Credentials("PLAIN", typed, f"{name}x")) is None
    key = plugin.stored_key("SCRAM-SHA-256", typed)
    assert key is not None
    assert key.username == name
    strict = PasswordFile(path=people, ignore_case=False)
    expected = name if typed == name else None
    assert strict.authenticate(Credentials("PLAIN", typed, name)) == expected
    assert (strict.stored_key("SCRAM-SHA-256", typed) is None) is (typed != name)


@pytest.mark.parametrize(
    "typed",
    [
        *(
            "strasse",
            "eve",
            "eVE",
            "bo\u0308",
            "\u0430lice",
            "al\u00adice",
            "alice\0",
            "b\u00f6b\u200d",
        ),
        *("carol@strasse.example", "carol", "alice@example.org", "ali ce", "\u00e4lice", "cafe"),
    ],
    ids=ascii,
)
def test_nobody_becomes_another_user_by_the_spelling(people: Path, typed: str) -> None:
    """For every password, also that of another user."""
    plugin = PasswordFile(path=people)
    for password in (*PEOPLE, typed):
        assert plugin.authenticate(Credentials("PLAIN", typed, password)) is None
        for name in PEOPLE:
            assert plugin.authenticate(Credentials("PLAIN", name, name, typed)) is None


@given(st.text(), st.text())
def test_only_the_password_of_a_user_opens_for_that_user(one: str, other: str) -> None:
    """With any two names in the file, and each of them typed in the folded form."""
    users = _Users()
    for name in dict.fromkeys((one, other)):
        users.hashes[name] = name
        users.note(name)
    for typed in (one, other, folded_name(one), folded_name(other)):
        found = PasswordFile._name(cast("Any", SimpleNamespace(ignore_case=True)), users, typed)  # noqa: SLF001
        assert (
            found == typed
            or (found not in users.hashes)
            or folded_name(found) == folded_name(typed)
        )
        if typed in users.hashes:
            assert found == typed


def test_names_that_are_alike_are_told(people: Path) -> None:
    def told(option: str) -> str:
        text = f'{MX}tls = "none"\n[[plugins]]\nuse = "password_file"\npath = "{people}"\n{option}'
        return " ".join(str(each) for each in check(Config.parse(text, people.parent / "x.toml")))

    assert "people has names that are alike: EVE" in told("")
    assert "has names" not in told("ignore_case = false")


@pytest.mark.parametrize("ignore_case", [True, False])
def test_keys_that_are_made_up_tell_nobody_how_names_are_compared(
    people: Path, *, ignore_case: bool
) -> None:
    """Where case counts, both have keys of their own, as two users would have."""
    plugin = PasswordFile(path=people, ignore_case=ignore_case)
    dialogue = Dialogue(plugin)

    def salt(name: str) -> str:
        dialogue.send("EHLO client.example")
        first = base64.b64encode(f"n,,n={name},r=x".encode()).decode()
        said = base64.b64decode(dialogue.send(f"AUTH SCRAM-SHA-256 {first}")[4:]).decode()
        dialogue.send("*")
        return said.split(",")[1]

    for name in ("alice", "nobody"):
        assert (salt(name) == salt(name.upper())) is ignore_case
        assert salt(name) == salt(name)


def test_strong_hash_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"alice:{hash_password('apple', 'argon2id')}\n")
    plugin = PasswordFile(path=path)
    assert plugin.authenticate(Credentials("PLAIN", "alice", "apple")) == "alice"


def test_nobody_may_act_as_somebody_else(path: Path) -> None:
    """RFC 4616 section 2: the authorization identity."""
    plugin = PasswordFile(path=path)
    own = Credentials("PLAIN", "alice", "apple", authorization="alice")
    other = Credentials("PLAIN", "alice", "apple", authorization="Bob")
    assert plugin.authenticate(own) == "alice"
    assert plugin.authenticate(other) is None


def test_token_is_not_looked_at(path: Path, costs: list[int]) -> None:
    credentials = Credentials("OAUTHBEARER", "alice", token="apple")  # noqa: S106 - it is no secret
    assert PasswordFile(path=path).authenticate(credentials) is None
    assert costs == []


@pytest.mark.parametrize("user", ["alice", "Bob", *(f"unknown{number}" for number in range(20))])
def test_every_refusal_costs_one_check(path: Path, costs: list[int], user: str) -> None:
    assert PasswordFile(path=path).authenticate(Credentials("PLAIN", user, "wrong")) is None
    assert len(costs) == 1
    assert costs[0] in (1 << 1, 1 << 2)


def test_unknown_users_cost_what_any_of_the_known_cost(path: Path, costs: list[int]) -> None:
    plugin = PasswordFile(path=path)
    for number in range(50):
        plugin.authenticate(Credentials("PLAIN", f"unknown{number}", "wrong"))
    assert set(costs) == {1 << 1, 1 << 2}


def test_unknown_user_always_costs_the_same(path: Path, costs: list[int]) -> None:
    for _ in range(3):
        PasswordFile(path=path).authenticate(Credentials("PLAIN", "unknown", "wrong"))
    assert len(set(costs)) == 1


def replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_a_looping_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


FAULTS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "blank": lambda path: path.write_bytes(b"\n \n"),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "a directory": replaced_by_a_directory,
    "a looping link": replaced_by_a_looping_link,
}


@pytest.mark.usefixtures("_seconds_pass")
@pytest.mark.parametrize("fault", FAULTS)
def test_file_that_cannot_be_used_puts_every_login_off(path: Path, fault: str) -> None:
    plugin = PasswordFile(path=path)
    good = path.read_bytes()
    assert plugin.authenticate(Credentials("PLAIN", "alice", "apple")) == "alice"
    FAULTS[fault](path)
    for user in ("alice", "Bob", "stranger"):
        with pytest.raises(
            Defer, match=r"^454 4\.7\.0 the passwords cannot be read now"
        ) as refusal:
            plugin.authenticate(Credentials("PLAIN", user, "apple"))
        assert path.name in str(refusal.value.__cause__)  # which the log has as the reason
        with pytest.raises(Defer):
            plugin.stored_key("SCRAM-SHA-256", user)
    aside = path.rename(path.with_name("aside")) if path.exists() else path
    if aside == path:
        path.unlink(missing_ok=True)
    path.write_bytes(good)
    assert plugin.authenticate(Credentials("PLAIN", "alice", "apple")) == "alice"
    assert plugin.authenticate(Credentials("PLAIN", "stranger", "apple")) is None


@pytest.mark.usefixtures("_seconds_pass")
def test_file_of_comments_has_no_users_on_purpose(path: Path) -> None:
    plugin = PasswordFile(path=path)
    path.write_text("# all have gone\n")
    assert plugin.authenticate(Credentials("PLAIN", "alice", "apple")) is None


@pytest.mark.usefixtures("_seconds_pass", "_no_other_files")
def test_file_that_is_empty_at_the_start_puts_every_login_off(path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(b"")
    plugin = PasswordFile(path=path)  # as a process that starts after the accident
    assert plugin.mechanisms == ("PLAIN", "LOGIN")  # AUTH is offered, so clients get 454
    assert unusable_files() == 1
    with pytest.raises(Defer, match=r"^454 4\.7\.0 the passwords cannot be read now"):
        plugin.authenticate(Credentials("PLAIN", "alice", "apple"))
    path.write_bytes(good)
    assert plugin.authenticate(Credentials("PLAIN", "alice", "apple")) == "alice"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("alice", "expected `user:hash`"),
        ("alice:", "expected `user:hash`"),
        (":$scrypt$", "expected `user:hash`"),
        ("alice:secret", "not a password hash of a known scheme"),
        ("alice:$scrypt$ln=1", "expected $scrypt$ln=15,r=8,p=1$SALT$KEY"),
        (f"bob:{cheap('x')}\nbob:{cheap('y')}", "bob stands here twice"),
    ],
    ids=["no hash", "empty hash", "no user", "clear text", "half a hash", "twice"],
)
def test_fault_in_file_is_named_with_its_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"# people\n{line}\n")
    number = 3 if "\n" in line else 2
    with pytest.raises(ConfigError) as fault:
        build(PasswordFile, {"path": "passwords"}, file="c", key="plugins[0]", base=tmp_path)
    assert f"path: {path}:{number}: {problem}" in str(fault.value)
    assert "secret" not in str(fault.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: No such file"):
        build(PasswordFile, {"path": "nowhere"}, file="c", key="plugins[0]", base=tmp_path)


@pytest.mark.usefixtures("_seconds_pass")
def test_changed_file_is_taken_on_and_a_broken_one_is_not(path: Path) -> None:
    plugin = PasswordFile(path=path)
    path.write_text(f"carol:{cheap('plum')}\n")
    assert plugin.authenticate(Credentials("PLAIN", "carol", "plum")) == "carol"
    assert plugin.authenticate(Credentials("PLAIN", "alice", "apple")) is None
    path.write_text("carol:\n")
    assert plugin.authenticate(Credentials("PLAIN", "carol", "plum")) == "carol"


def login(plugin: PasswordFile, password: str = "apple") -> str | None:  # noqa: S107
    """Let alice log in."""
    return plugin.authenticate(Credentials("PLAIN", "alice", password))


def test_right_password_is_recognized_without_another_check(path: Path, costs: list[int]) -> None:
    plugin = PasswordFile(path=path)
    assert [login(plugin), login(plugin)] == ["alice", "alice"]
    assert len(costs) == 1


def test_wrong_password_costs_a_check_each_time(path: Path, costs: list[int]) -> None:
    plugin = PasswordFile(path=path)
    assert login(plugin) == "alice"
    assert [login(plugin, "wrong"), login(plugin, "wrong")] == [None, None]
    assert len(costs) == 3


@pytest.mark.usefixtures("_seconds_pass")
def test_old_password_is_forgotten_when_its_hash_changes(path: Path) -> None:
    plugin = PasswordFile(path=path)
    assert login(plugin) == "alice"
    path.write_text(f"alice:{cheap('cherry')}\n")
    assert [login(plugin), login(plugin, "cherry")] == [None, "alice"]


def test_password_is_checked_again_after_a_while(
    path: Path, costs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = PasswordFile(path=path, remember=timedelta(minutes=10))
    assert login(plugin) == "alice"
    later = time.monotonic() + 601
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert login(plugin) == "alice"
    assert len(costs) == 2


def test_nothing_is_remembered_when_told_so(path: Path, costs: list[int]) -> None:
    plugin = PasswordFile(path=path, remember=timedelta())
    assert [login(plugin), login(plugin)] == ["alice", "alice"]
    assert len(costs) == 2


def test_logins_at_once_cost_one_check_of_the_hash(path: Path, costs: list[int]) -> None:
    plugin = PasswordFile(path=path)
    together = threading.Barrier(8)

    def log_in(_number: int) -> str | None:
        together.wait(10)
        return plugin.authenticate(Credentials("PLAIN", "alice", "apple"))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(log_in, range(8))) == ["alice"] * 8
    assert len(costs) == 1


def until(condition: Callable[[], object]) -> None:
    """Let other threads work until a condition holds."""
    while not condition():
        time.sleep(0.001)


class Queue:
    """Logins that wait for their turn, because the check of the first one lasts until `go`."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
        monkeypatch.setattr("minismtp_plugins._login._PATIENCE", patience)
        monkeypatch.setattr("minismtp_plugins._login.verify_password", self._verify)
        self.plugin = PasswordFile(path=path)
        self.go = threading.Event()
        self.checked: list[str] = []

    def log_in(self, password: str, *, known: bool = False) -> str | None:
        credentials = Credentials("PLAIN", "alice", password, known=known)
        return self.plugin.authenticate(credentials)

    def waiting(self) -> int:
        return self.plugin._check._lock.waiting  # noqa: SLF001 - else only time would tell

    def _verify(self, password: str, _stored: str | None) -> bool:
        self.checked.append(password)
        return self.go.wait(30) and False


def test_login_that_gets_no_turn_is_put_off_after_seconds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(path, monkeypatch, 0.05)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(queue.log_in, "one")
        until(lambda: queue.checked)
        with pytest.raises(Defer):
            queue.log_in("two")
        assert not queue.waiting()
        queue.go.set()
        assert first.result() is None
    assert queue.log_in("two") is None  # the turn is free again


def test_those_who_are_known_come_before_strangers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(path, monkeypatch, 30.0)
    with ThreadPoolExecutor(5) as pool:
        pool.submit(queue.log_in, "first")
        until(lambda: queue.checked)
        for number, name in enumerate(["stranger", "other", "known", "familiar"]):
            pool.submit(queue.log_in, name, known=number > 1)
            until(lambda number=number: queue.waiting() == number + 1)  # type: ignore[misc]
        queue.go.set()
    assert queue.checked == ["first", "known", "familiar", "stranger", "other"]
