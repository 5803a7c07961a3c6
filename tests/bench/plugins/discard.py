"""Takes mail and stores nothing."""

from minismtp import hookimpl, plugin


@plugin
class Discard:
    """Says that it stored the message, and does not store it."""

    @hookimpl
    def deliver(self) -> bool:
        return True
