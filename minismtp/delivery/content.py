"""The content of a message, converted for a host that cannot take it as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form, converted, is_sealed
from minismtp.mail.queue_entry import QueueEntry

Edit = Callable[[QueueEntry, Message], object]


class Original:
    """A message as it is in the queue, from which conversions are made.

    `edit` lets plugins edit a conversion as they edit any message before it is sent, so that their
    signatures are valid for it. `directory` is for large conversions.
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
        """Whether it has a signature that a conversion would break."""
        return is_sealed(self._message)

    def converted(self, entry: QueueEntry, *, eight_bit: bool) -> tuple[QueueEntry, Message, Form]:
        """Return a conversion with its envelope and form. Raise Verdict and OSError."""
        made = self._convert(self._message, entry, eight_bit=eight_bit)
        form = Form.of(made)
        entry = replace(entry, body="8BITMIME" if form.wide and eight_bit else "7BIT")
        self._edit(entry, made)
        edited = Form.of(made)
        if edited != form and (edited.long or not eight_bit):  # because of a plugin
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
