"""Takes mail and stores nothing."""

from minismtp import plugin


@plugin
class Discard:
    def deliver(self) -> bool:
        return True
