"""Takes mail and stores nothing."""

from minismtp import hookimpl, plugin


@plugin
class Discard:
    """Says that it has stored what it has not."""

    @hookimpl
    def deliver(self) -> bool:
        return True
