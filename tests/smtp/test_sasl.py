"""SASL exchanges, each spoken from the client's side."""

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minismtp.smtp import sasl
from minismtp.smtp.sasl import Credentials, Exchange, Proof, SaslProblem, StoredKey, derive_key

SALT = b"0123456789abcdef"
KEY = derive_key("pencil", SALT)


def finished(exchange: Exchange, response: bytes) -> Credentials | Proof:
    """Send the last response and return the outcome."""
    with pytest.raises(StopIteration) as stop:
        exchange.send(response)
    outcome = stop.value.value
    assert isinstance(outcome, Credentials | Proof)
    return outcome


def refused(exchange: Exchange, response: bytes) -> str:
    """Send a response that ends the exchange, and return the reason."""
    with pytest.raises(SaslProblem) as problem:
        exchange.send(response)
    return str(problem.value)


# PLAIN, LOGIN, EXTERNAL ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "offer"),
    [
        pytest.param(
            b"\0tim\0tanstaaftanstaaf",
            Credentials("PLAIN", "tim", "tanstaaftanstaaf"),
            id="rfc-4616",
        ),
        pytest.param(
            b"Ursel\0Kurt\0xipj3plmq",
            Credentials("PLAIN", "Kurt", "xipj3plmq", "Ursel"),
            id="as-ursel",
        ),
        pytest.param(
            "\0jürgen\0pässword".encode(), Credentials("PLAIN", "jürgen", "pässword"), id="utf-8"
        ),
    ],
)
def test_plain_gives_what_the_client_offers(message: bytes, offer: Credentials) -> None:
    # RFC 4616 section 2
    exchange = sasl.plain()
    assert next(exchange) == b""
    assert finished(exchange, message) == offer


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"tim", id="one-part"),
        pytest.param(b"tim\0password", id="two-parts"),
        pytest.param(b"\0tim\0pass\0word", id="nul-in-password"),
        pytest.param(b"\0\0password", id="no-user"),
        pytest.param(b"\0tim\0", id="no-password"),
        pytest.param(b"\0tim\0\xff", id="not-utf-8"),
    ],
)
def test_malformed_plain_is_refused(message: bytes) -> None:
    exchange = sasl.plain()
    next(exchange)
    refused(exchange, message)


def test_login_asks_for_name_and_password() -> None:
    exchange = sasl.login()
    assert next(exchange) == b"Username:"
    assert exchange.send(b"tim") == b"Password:"
    assert finished(exchange, b"secret") == Credentials("LOGIN", "tim", "secret")


@pytest.mark.parametrize(
    ("name", "password"),
    [(b"", b"x"), (b"x", b""), (b"a\0b", b"x"), (b"x", b"a\0b"), (b"x", b"\xff")],
)
def test_malformed_login_is_refused(name: bytes, password: bytes) -> None:
    exchange = sasl.login()
    next(exchange)
    exchange.send(name)
    refused(exchange, password)


@pytest.mark.parametrize("asked", ["", "tim", "other"])
def test_external_proves_what_tls_has_proved(asked: str) -> None:
    # RFC 4422 appendix A
    exchange = sasl.external("tim")
    assert next(exchange) == b""
    assert finished(exchange, asked.encode()) == Proof("tim", asked)


# OAUTHBEARER, XOAUTH2 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "offer"),
    [
        pytest.param(
            b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01"
            b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01",
            Credentials(
                "OAUTHBEARER",
                "user@example.com",
                token="vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==",  # noqa: S106
            ),
            id="rfc-7628-section-4.1",
        ),
        pytest.param(
            b"n,,\x01auth=Bearer t\x01\x01",
            Credentials("OAUTHBEARER", "", token="t"),  # noqa: S106
            id="no-user",
        ),
        pytest.param(
            b"y,,\x01auth=bearer  t \x01\x01",
            Credentials("OAUTHBEARER", "", token="t"),  # noqa: S106
            id="case",
        ),
        pytest.param(
            b"n,a=a=2Cb=3Dc,\x01auth=Bearer t\x01\x01",
            Credentials("OAUTHBEARER", "a,b=c", token="t"),  # noqa: S106
            id="escapes",
        ),
    ],
)
def test_oauthbearer_gives_user_and_token(message: bytes, offer: Credentials) -> None:
    exchange = sasl.oauthbearer()
    assert next(exchange) == b""
    assert finished(exchange, message) == offer


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x01", id="separator-alone"),
        pytest.param(b"n\x01auth=Bearer t\x01\x01", id="half-a-header"),
        pytest.param(b"n,user,\x01auth=Bearer t\x01\x01", id="name-without-tag"),
        pytest.param(b"n,a=x=20y,\x01auth=Bearer t\x01\x01", id="unknown-escape"),
        pytest.param(b"p=tls-unique,,\x01auth=Bearer t\x01\x01", id="channel-binding"),
        pytest.param(b"n,,\x01host=x\x01\x01", id="no-token"),
        pytest.param(b"n,,\x01auth=Bearer\x01\x01", id="empty-token"),
        pytest.param(b"n,,\x01auth=Basic dGlt\x01\x01", id="other-scheme"),
    ],
)
def test_malformed_oauthbearer_is_refused(message: bytes) -> None:
    # RFC 7628 section 3.1
    exchange = sasl.oauthbearer()
    next(exchange)
    refused(exchange, message)


def test_xoauth2_gives_user_and_token() -> None:
    exchange = sasl.xoauth2()
    assert next(exchange) == b""
    offer = finished(exchange, b"user=some@example.com\x01auth=Bearer ya29.vF9d\x01\x01")
    assert offer == Credentials("XOAUTH2", "some@example.com", token="ya29.vF9d")  # noqa: S106


@pytest.mark.parametrize(
    "message", [b"", b"user=x\x01\x01", b"auth=Bearer t\x01\x01", b"user=\x01auth=Bearer t\x01\x01"]
)
def test_malformed_xoauth2_is_refused(message: bytes) -> None:
    exchange = sasl.xoauth2()
    next(exchange)
    refused(exchange, message)


def test_failed_token_is_told_as_a_challenge() -> None:
    # RFC 7628 section 3.2.3: the client answers with 0x01, then the exchange fails
    exchange = sasl.oauth_failure()
    assert json.loads(next(exchange))["status"] == "invalid_token"
    refused(exchange, b"\x01")


# SCRAM-SHA-256 -------------------------------------------------------------------------------


class ScramClient:
    """The client's side of RFC 5802 section 3, independent of the code under test."""

    def __init__(self, username: str, password: str, header: str = "n,,") -> None:
        self.header = header
        self.bare = f"n={username},r=rOprNGfwEbeRWgbNEkqO"
        self.password = password

    def first(self) -> bytes:
        return f"{self.header}{self.bare}".encode()

    def final(self, challenge: bytes) -> bytes:
        match = re.fullmatch(r"r=([^,]+),s=([^,]+),i=([0-9]+)", challenge.decode())
        assert match is not None
        assert match[1].startswith("rOprNGfwEbeRWgbNEkqO")
        salt, iterations = base64.b64decode(match[2]), int(match[3])
        binding = base64.b64encode(self.header.encode()).decode()
        without_proof = f"c={binding},r={match[1]}"
        message = f"{self.bare},{challenge.decode()},{without_proof}".encode()
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        stored_key = hashlib.sha256(client_key).digest()
        signature = hmac.digest(stored_key, message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        self.server_signature = hmac.digest(server_key, message, "sha256")
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()


def begun(client: ScramClient, key: StoredKey | None = KEY) -> tuple[Exchange, bytes]:
    """Begin an exchange. Return it and the server's first message."""
    exchange = sasl.scram_sha_256(lambda _: key)
    assert next(exchange) == b""
    return exchange, exchange.send(client.first())


def test_stored_key_is_that_of_the_rfc() -> None:
    # RFC 7677 section 3: user "user", password "pencil"
    key = derive_key("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    assert base64.b64encode(key.stored) == b"WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
    assert base64.b64encode(key.server) == b"wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="


def test_exchange_is_that_of_the_rfc(monkeypatch: pytest.MonkeyPatch) -> None:
    # RFC 7677 section 3, with the server's part of the nonce from there
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    exchange = sasl.scram_sha_256({"user": derive_key("pencil", salt, 4096)}.get)
    next(exchange)
    assert exchange.send(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO") == (
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    assert exchange.send(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    ) == (b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    assert finished(exchange, b"") == Proof("user")


@pytest.mark.parametrize(
    ("header", "username", "proof"),
    [
        pytest.param("n,,", "user", Proof("user"), id="plain"),
        pytest.param("y,,", "user", Proof("user"), id="client-knows-channel-binding"),
        pytest.param("n,a=boss,", "user", Proof("user", "boss"), id="acting-as-another"),
        pytest.param("n,,", "a=2Cb=3Dc", Proof("a,b=c"), id="escapes"),
        pytest.param("n,,", "a=3D2Cb", Proof("a=2Cb"), id="escaped-escape"),
        pytest.param("n,,", "jürgen", Proof("jürgen"), id="utf-8"),
    ],
)
def test_client_and_server_prove_the_key(header: str, username: str, proof: Proof) -> None:
    client = ScramClient(username, "pencil", header)
    exchange, challenge = begun(client)
    final = exchange.send(client.final(challenge))
    assert final == b"v=" + base64.b64encode(client.server_signature)
    assert finished(exchange, b"") == proof


def test_nonce_is_new_in_every_exchange() -> None:
    client = ScramClient("user", "pencil")
    assert begun(client)[1] != begun(client)[1]


def test_old_proof_does_not_serve_again() -> None:
    client = ScramClient("user", "pencil")
    _, challenge = begun(client)
    exchange, _ = begun(client)
    assert "nonce" in refused(exchange, client.final(challenge))


def test_proof_over_another_header_is_refused() -> None:
    # RFC 5802 section 5.1: c= must be what the first message said, even if the proof covers it.
    client = ScramClient("user", "pencil")
    exchange, challenge = begun(client)
    client.header = "y,,"
    assert "channel binding" in refused(exchange, client.final(challenge))


@pytest.mark.parametrize(("iterations", "taken"), [(4095, False), (4096, True), (10**7 + 1, False)])
def test_stored_key_has_a_bounded_cost(iterations: int, taken: bool) -> None:
    # RFC 7677 section 4 demands at least 4096 iterations.
    text = KEY.text.replace(f"i={KEY.iterations}", f"i={iterations}")
    with nullcontext() if taken else pytest.raises(ValueError, match="out of bounds"):
        assert StoredKey.parse(text).iterations == iterations


def test_wrong_password_proves_nothing() -> None:
    client = ScramClient("user", "pen")
    exchange, challenge = begun(client)
    assert refused(exchange, client.final(challenge)) == "wrong proof"


def test_unknown_user_fails_as_a_known_one_does() -> None:
    client = ScramClient("nobody", "pencil")
    exchange, challenge = begun(client, None)
    again = begun(client, None)[1]
    assert challenge.split(b",")[1:] == again.split(b",")[1:]  # salt and iterations
    assert begun(ScramClient("another", "x"), None)[1].split(b",")[1:] != again.split(b",")[1:]
    assert refused(exchange, client.final(challenge)) == "wrong proof"


def salt_and_iterations(made_up: sasl.MadeUpKeys, user: str) -> tuple[bytes, int]:
    exchange = sasl.scram_sha_256(lambda _: None, made_up)
    next(exchange)
    fields = dict(
        part.split("=", 1)
        for part in exchange.send(ScramClient(user, "x").first()).decode().split(",")
    )
    return base64.b64decode(fields["s"]), int(fields["i"])


def test_made_up_salt_is_the_same_for_a_name_and_a_secret() -> None:
    one, again, other = (sasl.MadeUpKeys(secret) for secret in (b"1" * 32, b"1" * 32, b"2" * 32))
    assert salt_and_iterations(one, "nobody") == salt_and_iterations(again, "nobody")
    assert salt_and_iterations(one, "nobody") != salt_and_iterations(one, "noone")
    assert salt_and_iterations(one, "nobody") != salt_and_iterations(other, "nobody")


@pytest.mark.parametrize(("length", "iterations"), [(16, 65536), (12, 4096), (32, 100_000)])
def test_made_up_key_looks_like_that_of_a_user(length: int, iterations: int) -> None:
    made_up = sasl.MadeUpKeys()
    key = sasl.StoredKey(bytes(length), iterations, bytes(32), bytes(32))
    exchange = sasl.scram_sha_256(lambda _: key, made_up)
    next(exchange)
    exchange.send(ScramClient("user", "x").first())
    salt, count = salt_and_iterations(made_up, "nobody")
    assert (len(salt), count) == (length, iterations)


def test_made_up_key_is_of_no_use() -> None:
    # A client could prove the invented key, but without a user there is no login.
    client = ScramClient("nobody", "pencil")
    exchange = sasl.scram_sha_256(lambda _: None)
    next(exchange)
    challenge = exchange.send(client.first())
    zero = base64.b64encode(bytes(32))
    final = client.final(challenge).rpartition(b",p=")[0]
    assert refused(exchange, final + b",p=" + zero) == "wrong proof"


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"n,,", id="header-alone"),
        pytest.param(b"n=user,r=abc", id="no-header"),
        pytest.param(b"p=tls-unique,,n=user,r=abc", id="channel-binding"),
        pytest.param(b"n,boss,n=user,r=abc", id="authorization-without-tag"),
        pytest.param(b"n,,m=x,n=user,r=abc", id="mandatory-extension"),
        pytest.param(b"n,,r=abc,n=user", id="wrong-order"),
        pytest.param(b"n,,n=,r=abc", id="empty-name"),
        pytest.param(b"n,,n=us=er,r=abc", id="unknown-escape"),
        pytest.param(b"n,,n=us\0er,r=abc", id="nul"),
        pytest.param(b"n,,n=user", id="no-nonce"),
        pytest.param(b"n,,n=user,r=", id="empty-nonce"),
        pytest.param(b"n,,n=user,r=a\x7fb", id="nonce-not-printable"),
        pytest.param(b"n,,n=\xff,r=abc", id="not-utf-8"),
    ],
)
def test_malformed_first_message_is_refused(message: bytes) -> None:
    # RFC 5802 section 7; section 5.1 for "=" and "m="
    exchange = sasl.scram_sha_256(lambda _: KEY)
    next(exchange)
    refused(exchange, message)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(rb"c=biws", b"c=eSws", id="other-header"),  # y,, for n,,
        pytest.param(rb"c=biws,", b"", id="no-binding"),
        pytest.param(rb"r=", b"r=x", id="other-nonce"),
        pytest.param(rb",r=[^,]+", b"", id="no-nonce"),
        pytest.param(rb",p=.*", b"", id="no-proof"),
        pytest.param(rb",p=.*", b",p=", id="empty-proof"),
        pytest.param(rb",p=.*", b",p=A", id="proof-no-base64"),
        pytest.param(rb",p=.*", b",p=AAAA", id="short-proof"),
        pytest.param(rb"$", b",x=y", id="extension-behind-the-proof"),
        pytest.param(rb",p=", b",x=1,p=", id="extension-that-was-not-signed"),
        pytest.param(rb".*", b"", id="empty"),
        pytest.param(rb".*", b"\xff", id="not-utf-8"),
    ],
)
def test_tampered_final_message_is_refused(old: bytes, new: bytes) -> None:
    client = ScramClient("user", "pencil")
    exchange, challenge = begun(client)
    refused(exchange, re.sub(old, new, client.final(challenge), count=1))


def test_proof_with_more_octets_is_wrong() -> None:
    client = ScramClient("user", "pencil")
    exchange, challenge = begun(client)
    start, _, proof = client.final(challenge).rpartition(b",p=")
    longer = base64.b64encode(base64.b64decode(proof) + b"more")
    assert refused(exchange, start + b",p=" + longer) == "wrong proof"


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        # The examples of RFC 4013 section 3, and spaces of section 2.1
        pytest.param("I\u00adX", "IX", id="soft-hyphen"),
        pytest.param("\u00aa", "a", id="feminine-ordinal"),
        pytest.param("\u2168", "IX", id="roman-nine"),
        pytest.param("a\u00a0b", "a b", id="no-break-space"),
        pytest.param("pa\u0308ss", "p\u00e4ss", id="decomposed"),
    ],
)
def test_password_is_prepared_as_clients_do(stored: str, typed: str) -> None:
    # RFC 5802 section 2.2: Normalize is SASLprep
    assert derive_key(stored, SALT, 1) == derive_key(typed, SALT, 1)


def test_case_of_a_password_counts() -> None:
    assert derive_key("USER", SALT, 1) != derive_key("user", SALT, 1)


# All of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        Credentials("PLAIN", "user", "hidden-word"),
        Credentials("PLAIN", "user", token="hidden-word"),  # noqa: S106
        KEY,
    ],
    ids=["password", "token", "stored-key"],
)
def test_secrets_are_not_in_the_repr(secret: object) -> None:
    assert "hidden" not in repr(secret)
    assert repr(SALT) not in repr(secret)


MECHANISMS: dict[str, Callable[[], Exchange]] = {
    "PLAIN": sasl.plain,
    "LOGIN": sasl.login,
    "OAUTHBEARER": sasl.oauthbearer,
    "XOAUTH2": sasl.xoauth2,
    "SCRAM-SHA-256": lambda: sasl.scram_sha_256(lambda _: KEY),
    "EXTERNAL": lambda: sasl.external("user"),
}


@given(
    st.sampled_from(sorted(MECHANISMS)),
    st.lists(
        st.binary(max_size=30)
        | st.sampled_from([b"n,,n=user,r=abc", b"c=biws,r=abc,p=AAAA", b"\0a\0b", b"user"]),
        min_size=4,
        max_size=4,
    ),
)
def test_any_responses_end_in_an_outcome_or_a_refusal(
    mechanism: str, responses: list[bytes]
) -> None:
    exchange = MECHANISMS[mechanism]()
    next(exchange)
    try:
        challenges = [exchange.send(response) for response in responses]
    except (StopIteration, SaslProblem):
        return
    pytest.fail(f"still going on after {challenges}")
