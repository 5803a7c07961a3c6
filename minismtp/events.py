"""The events that plugins can observe; the public name of `minismtp.mail.events`.

    @hookimpl
    def observe(self, event: events.Event) -> None:
        if isinstance(event, events.MessageDecided):
            self.messages[event.outcome] += 1

Observers are called after the decision, so they cannot change it. They run in the process and in
the thread that decided, so an observer must not block for long. `Event` is any of these:

    SessionOpened, SessionClosed    one of each for a session
    Authenticated                   one for each exchange of AUTH
    RecipientDecided                one for each RCPT
    MessageDecided                  one for each message, over LMTP for each recipient of it
    RecipientJudged                 one for each recipient with a verdict of its own on the content
    DeliveryAttempted               one for each recipient in each attempt to deliver elsewhere
    HookFailed                      a plugin raised an exception that is no verdict
"""

from minismtp.mail.events import Authenticated as Authenticated
from minismtp.mail.events import DeliveryAttempted as DeliveryAttempted
from minismtp.mail.events import Event as Event
from minismtp.mail.events import HookFailed as HookFailed
from minismtp.mail.events import MessageDecided as MessageDecided
from minismtp.mail.events import RecipientDecided as RecipientDecided
from minismtp.mail.events import RecipientJudged as RecipientJudged
from minismtp.mail.events import SessionClosed as SessionClosed
from minismtp.mail.events import SessionOpened as SessionOpened
