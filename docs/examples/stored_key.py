"""Offer SCRAM-SHA-256, with keys from a table instead of passwords."""

from minismtp import StoredKey, hookimpl, plugin
from minismtp.smtp.sasl import make_key
from minismtp.testing import Dialogues


@plugin
class KeyTable:
    users: dict[str, str]  # as the third column of a password file has them

    def __post_init__(self) -> None:
        self._keys = {user: StoredKey.parse(text) for user, text in self.users.items()}

    @hookimpl
    def stored_key(self, username: str) -> StoredKey | None:
        return self._keys.get(username)


def test_scram_is_offered_and_asks_for_a_proof(dialogue: Dialogues) -> None:
    session = dialogue(KeyTable(users={"alice": make_key("secret").text}))
    assert "AUTH SCRAM-SHA-256" in session.send("EHLO client.example")
    # n,,n=alice,r=nonce (RFC 5802 section 5)
    assert session.send("AUTH SCRAM-SHA-256 biwsbj1hbGljZSxyPW5vbmNl").startswith("334 ")
