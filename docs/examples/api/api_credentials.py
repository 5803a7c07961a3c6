"""Check logins by an API token that is a secret of the whole company."""

import hmac

from minismtp import Credentials, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class CompanyToken:
    token: str

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        if not hmac.compare_digest(credentials.password.encode(), self.token.encode()):
            return None  # the next plugin may know the user
        return credentials.authorization or credentials.username


def test_token_is_the_password_of_everybody(dialogue: Dialogues) -> None:
    session = dialogue(CompanyToken(token="wisdom"), kind="submission", tls=True)  # noqa: S106
    session.send("EHLO client.example")
    assert session.send("AUTH PLAIN AGFsaWNlAGd1ZXNz")[:3] == "535"  # alice, guess
    assert session.send("AUTH PLAIN AGFsaWNlAHdpc2RvbQ==")[:3] == "235"  # alice, wisdom
    assert session.session.login == "alice"
