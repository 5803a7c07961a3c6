"""The content of a message, in the form in which a host takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form, converted, is_sealed
from minismtp.mail.queue_entry import QueueEntry

Edit = Callable[[QueueEntry, Message], object]


class Original:
    """A message as it waits, of which a host gets a conversion that it takes.

    `edit` is what plugins do to a message before it leaves. They do it to the conversion too, so a
    signature is one of what leaves. `directory` is where large conversions lie.
    """

    def __init__(
        self,
        message: Message,
        edit: Edit = lambda *_: None,
        directory: Path | None = None,
    ) -> None:
        self._message = message
        self._edit = edit
        self._directory = directory

    @property
    def sealed(self) -> bool:
        """Whether others have signed it, so that a conversion would break what they said."""
        return is_sealed(self._message)

    def converted(self, entry: QueueEntry, *, eight_bit: bool) -> tuple[QueueEntry, Message, Form]:
        """Return what leaves in its place, with its envelope. Raise Verdict and OSError."""
        made = self._convert(self._message, entry, eight_bit=eight_bit)
        form = Form.of(made)
        entry = replace(entry, body="8BITMIME" if form.wide and eight_bit else "7BIT")
        self._edit(entry, made)
        edited = Form.of(made)
        if edited != form and (edited.long or not eight_bit):  # by the work of a plugin
            made = self._convert(made, entry, eight_bit=eight_bit)
            edited = Form.of(made)
        return entry, made, edited

    def _convert(self, message: Message, entry: QueueEntry, *, eight_bit: bool) -> Message:
        return converted(
            message,
            eight_bit=eight_bit,
            binary=entry.body == "BINARYMIME",
            directory=self._directory,
        )
