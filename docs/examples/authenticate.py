"""Let users in whose passwords a table has as hashes of `minismtp passwd`."""

from base64 import b64encode

from minismtp import Credentials, check_stored_password, hookimpl, plugin, verify_password
from minismtp.testing import Dialogues
from minismtp.values.passwords import hash_password


@plugin
class PasswordTable:
    users: dict[str, str]

    def __post_init__(self) -> None:
        for stored in self.users.values():
            check_stored_password(stored)

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        stored = self.users.get(credentials.username)
        if stored is not None and verify_password(credentials.password, stored):
            return credentials.username
        return None


def test_right_password_logs_in(dialogue: Dialogues) -> None:
    session = dialogue(PasswordTable(users={"alice": hash_password("secret")}))
    session.send("EHLO client.example")
    wrong, right = (b64encode(f"\0alice\0{word}".encode()).decode() for word in ("no", "secret"))
    assert session.send(f"AUTH PLAIN {wrong}").startswith("535 5.7.8 ")
    assert session.send(f"AUTH PLAIN {right}").startswith("235 2.7.0 ")
    assert session.session.login == "alice"
