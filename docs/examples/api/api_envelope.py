"""Send a copy of what users write to an archive."""

from minismtp import Address, Envelope, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class Journal:
    archive: Address

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        if envelope.login is not None and envelope.reverse_path is not None:
            envelope.add(self.archive)


def test_archive_gets_what_users_write(dialogue: Dialogues, mailroom: Mailroom) -> None:
    journal = Journal(archive=Address("archive", "example.org"))
    dialogue(journal, mailroom, login="alice").mail("x", to=("bob@example.org",))
    assert sorted(mailroom.stored) == ["archive@example.org", "bob@example.org"]
    dialogue(journal, mailroom).mail("x", to=("carol@example.org",))
    assert len(mailroom.stored["archive@example.org"]) == 1
