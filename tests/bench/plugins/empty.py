"""Measures the cost of the guard around a plugin."""

from minismtp import hookimpl, plugin


@plugin
class Empty:
    """Does nothing."""

    @hookimpl
    def on_mail(self) -> None:
        pass
