"""Stored passwords: the format, the check, and attacks on both."""

import hashlib
import sys
import threading
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minismtp.values.passwords import check_stored_password, hash_password, verify_password

# RFC 7914 section 12, third vector: P="pleaseletmein", S="SodiumChloride", N=16384, r=8, p=1
VECTOR_KEY = bytes.fromhex(
    "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
    "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
)
SALT = b64encode(b"SodiumChloride").decode()
VECTOR = f"$scrypt$ln=14,r=8,p=1${SALT}${b64encode(VECTOR_KEY).decode()}"
# Cheap strings for tests about anything but their cost.
CHEAP = "$scrypt$ln=1,r=1,p=1$c2FsdA$" + b64encode(
    hashlib.scrypt(b"secret", salt=b"salt", n=2, r=1, p=1, dklen=32)
).decode().rstrip("=")

MALFORMED = [
    "",
    "secret",
    "$",
    "$scrypt",
    "$scrypt$",
    "$md5$salt$key",
    "$scrypt$ln=15,r=8,p=1$c2FsdA",
    "$scrypt$ln=15,r=8,p=1$c2FsdA$!",
    "$scrypt$ln=15,r=8,p=1$c$" + "A" * 43,
    "$scrypt$ln=0,r=8,p=1$c2FsdA$" + "A" * 43,
    "$scrypt$ln=1,r=0,p=1$c2FsdA$" + "A" * 43,
    "$scrypt$ln=99,r=8,p=1$c2FsdA$" + "A" * 43,
    "$scrypt$ln=10,r=8,p=999$c2FsdA$" + "A" * 43,
    "$scrypt$ln=1,r=1,p=1$c2FsdA$AAAA",
    "$scrypt$ln=\u0661,r=1,p=1$c2FsdA$" + "A" * 43,
    "$argon2id$",
    "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ",
    "$argon2id$v=19$m=x,t=3,p=4$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5",
    "$argon2id$v=19$m=4194304,t=3,p=4$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5",
    "$argon2id$v=19$m=65536,t=9999,p=4$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5",
    "{PLAIN}secret",
]


@pytest.mark.parametrize(
    ("scheme", "prefix"),
    [("scrypt", "$scrypt$ln=15,r=8,p=1$"), ("argon2id", "$argon2id$v=19$")],
)
def test_hash_names_its_scheme_and_verifies_only_its_password(scheme: str, prefix: str) -> None:
    stored = hash_password("pässword", scheme)
    assert stored.startswith(prefix)
    assert "=" not in stored.rpartition("$")[2]
    check_stored_password(stored)
    assert verify_password("pässword", stored)
    assert not verify_password("passwörd", stored)


def test_scrypt_is_the_default() -> None:
    assert hash_password("secret").startswith("$scrypt$")


def test_each_hash_has_its_own_salt() -> None:
    assert hash_password("secret") != hash_password("secret")


def test_scrypt_agrees_with_the_vector_of_the_rfc() -> None:
    assert verify_password("pleaseletmein", VECTOR)
    assert verify_password("pleaseletmein", VECTOR.replace("=$", "$").rstrip("="))


@pytest.mark.parametrize("stored", MALFORMED)
def test_malformed_stored_string_verifies_nothing_and_fails_the_check(stored: str) -> None:
    assert verify_password("secret", stored) is False
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what the reason must not show
        check_stored_password(stored)
    assert "secret" not in str(caught.value)


@given(st.text(), st.text())
def test_verify_never_raises(password: str, rest: str) -> None:
    assert verify_password(password, rest) is False
    assert verify_password(password, f"$scrypt${rest}") is False


@pytest.mark.parametrize("password", ["", "a\0b", "\udc80", "x" * 12288])
def test_unusual_password_is_compared_like_any_other(password: str) -> None:
    assert not verify_password(password, CHEAP)


@pytest.mark.parametrize(
    ("hashed", "typed", "right"),
    [
        ("\u00e9", "\u00e9", True),
        ("\u00e9", "e\u0301", True),
        ("e\u0301", "e\u0301", True),  # a hash from before passwords were prepared
        ("a b", "a\u00a0b", True),
        ("a b", "a\u3000b", True),
        ("\u00e9", "e", False),
        ("\u00e9", "\u00c9", False),
        ("a", "\uff41", False),
        ("stra\u00dfe", "strasse", False),
        ("\ufb01", "fi", False),
    ],
    ids=ascii,
)
def test_password_fits_as_rfc_8265_prepares_it(hashed: str, typed: str, *, right: bool) -> None:
    key = hashlib.scrypt(hashed.encode(), salt=b"salt", n=2, r=1, p=1, dklen=32)
    stored = f"$scrypt$ln=1,r=1,p=1$c2FsdA${b64encode(key).decode()}"
    assert verify_password(typed, stored) is right


def test_password_is_hashed_as_rfc_8265_prepares_it() -> None:
    assert verify_password("\u00e9 x", hash_password("e\u0301\u2003x"))


def test_missing_user_is_refused_at_the_cost_of_a_real_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = []

    def scrypt(password: bytes, *, n: int, r: int, p: int, **_: object) -> bytes:
        costs.append((n, r, p))
        return password

    stored = hash_password("secret")
    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    assert verify_password("wrong", stored) is False
    assert verify_password("wrong", None) is False
    assert costs == [(2**15, 8, 1)] * 2


def test_empty_password_gets_no_hash() -> None:
    with pytest.raises(ValueError, match="empty"):
        hash_password("")


def test_unknown_scheme_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'md5': known are scrypt, argon2id"):
        hash_password("secret", "md5")


def test_argon2_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = hash_password("secret", "argon2id")
    monkeypatch.setitem(sys.modules, "argon2", None)
    with pytest.raises(ModuleNotFoundError, match=r"minismtp\[argon2\]"):
        hash_password("secret", "argon2id")
    with pytest.raises(ModuleNotFoundError, match=r"minismtp\[argon2\]"):
        verify_password("secret", stored)
    with pytest.raises(ValueError, match=r"minismtp\[argon2\]"):
        check_stored_password(stored)


def test_no_more_than_four_checks_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Semaphore(0)
    go_on = threading.Event()
    running = []

    def scrypt(password: bytes, **_: object) -> bytes:
        running.append(password)
        waiting.release()
        assert go_on.wait(30)
        return password

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    threads = [threading.Thread(target=verify_password, args=("x", CHEAP)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        assert waiting.acquire(timeout=30)
    assert not waiting.acquire(timeout=0.2)
    assert len(running) == 4
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(running) == 6
