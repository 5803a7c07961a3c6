"""Parts of configuration files that many tests need."""

from typing import Final


def listener(name: str = "smtp", *options: str, address: str = "127.0.0.1:0") -> str:
    """Return the table of a listener, with these lines besides its name and address."""
    lines = ["", "[[listeners]]", f'name = "{name}"', f'address = "{address}"', *options, ""]
    return "\n".join(lines)


CLEAR: Final = 'tls = "none"'
MX: Final = listener()
SUBMISSION: Final = listener("submission", 'kind = "submission"')
SUBMISSIONS: Final = listener("submissions", 'kind = "submission"', 'tls = "implicit"')
MAILBOXES: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "maildir"
path = "mail/{local}"
"""
SPAM_FLAG: Final = '''
"""Reject mail that an upstream scanner has flagged as spam."""
from minismtp import Message, Reject, hookimpl, plugin

@plugin
class SpamFlag:
    header: str = "X-Spam-Flag"

    @hookimpl
    def on_message(self, message: Message) -> None:
        if message.headers.get(self.header).upper() == "YES":
            raise Reject("message refused as spam")
'''
