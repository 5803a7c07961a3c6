"""The table `[limits]` of the configuration."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Final

from msgspec import Meta

from minismtp.config.checks import MIN_DATA_RATE, Count, check_positive
from minismtp.config.mistakes import ConfigError
from minismtp.config.types import ByteSize

_MESSAGE_SIZE: Final = ByteSize.parse("25MiB")
_HEADERS_SIZE: Final = ByteSize.parse("1MiB")
_SHORTEST_HANG: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a message, a session, a client address and the whole server may use.

    All times are absolute deadlines, so a client gains nothing by sending an octet now and then.
    Only content that arrives at `min_data_rate` or faster extends `data_timeout`. Limits of
    sessions and `login_backoff` hold for all workers together. To ban an address altogether, feed
    the `auth failure` lines of the log to fail2ban: `etc/fail2ban` has the filter and a jail.
    """

    message_size: Annotated[
        ByteSize,
        "of one message. 552 5.3.4 at MAIL if the client announces more, else at the end of the"
        " content",
    ] = _MESSAGE_SIZE
    headers: Annotated[
        ByteSize,
        "of a message's header section, at most 1MiB, because plugins read no more. 552 5.3.4"
        " beyond, and for more than 10,000 fields",
    ] = _HEADERS_SIZE
    line_length: Annotated[
        int,
        Meta(ge=0),
        "octets of a text line with its CRLF, except in the body of BODY=BINARYMIME; 500 5.6.0"
        " beyond. 0 = any length: many real senders exceed the 1000 of RFC 5321",
    ] = 0
    recipients: Annotated[Count, "of one message; 452 4.5.3 for those beyond"] = 100
    hops: Annotated[
        Count, "a message with this number of Received fields or more is in a loop: 554 5.4.6"
    ] = 100
    sessions: Annotated[Count, "at once in the whole server; 421 beyond"] = 2000
    sessions_per_ip: Annotated[
        Count, "at once from one address, or IPv6 network of 64 bits; 421 beyond"
    ] = 100
    reserved_sessions: Annotated[
        int,
        Meta(ge=0),
        "how many of `sessions` mx listeners cannot use, so that a flood on port 25 leaves room"
        " for users",
    ] = 0
    errors: Annotated[
        Count,
        "bad commands of one session since its last message before 421. A recipient or sender"
        " that is refused counts as a fifth, one that is deferred as a hundredth",
    ] = 10
    junk_commands: Annotated[
        Count,
        "commands of one session since its last message that do not lead to another, such as"
        " NOOP, RSET, VRFY, EHLO and MAIL. Each one beyond is an error",
    ] = 100
    error_delay: Annotated[
        timedelta,
        "added to the delay of a client's reply with each error, from half of `errors` on. The"
        " delay counts the errors of all sessions of the client and grows to ten times this"
        ' value; "0s" = off',
    ] = timedelta(seconds=1)
    failed_logins: Annotated[Count, "of one session before 421"] = 3
    login_backoff: Annotated[
        timedelta,
        "how long an address waits after a failed login. Each further one doubles the wait, up"
        " to a minute. An attempt counts as failed until it succeeds, and gets 454 if it would"
        ' have to wait for more than 10 s; "0s" = off',
    ] = timedelta(seconds=1)
    handshake_timeout: Annotated[
        timedelta,
        "for a TLS handshake, and for the PROXY header of a load balancer. Programs need no"
        " longer, and a silent client occupies a session",
    ] = timedelta(seconds=20)
    command_timeout: Annotated[
        timedelta, "for one command to arrive, and for the client to take its reply"
    ] = timedelta(minutes=5)
    data_timeout: Annotated[
        timedelta,
        "how long the transfer of a content may stall. Each octet that arrives gives back its"
        " share of a second at `min_data_rate`. So a slow line is served, but a client that"
        " sends an octet now and then is not",
    ] = timedelta(minutes=10)
    min_data_rate: Annotated[
        ByteSize, "octets of content per second that keep `data_timeout` from running down"
    ] = MIN_DATA_RATE
    content_timeout: Annotated[timedelta, "for a whole content, however steadily it arrives"] = (
        timedelta(hours=2)
    )
    session_timeout: Annotated[
        timedelta, "for the whole session. A content that began to arrive before is still accepted"
    ] = timedelta(hours=1)
    drain: Annotated[
        timedelta,
        "how long sessions continue after a reload. After that, or after TERM, they have the"
        " same time to end",
    ] = timedelta(seconds=30)
    hang_timeout: Annotated[
        timedelta,
        "a process that shows no sign of life for this long is killed and replaced, and its"
        ' sessions are cut. Sessions that wait do not count. "0s" = never, else at least'
        " 5 seconds",
    ] = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if timedelta() < self.hang_timeout < _SHORTEST_HANG:
            raise ConfigError('expected "0s", or "5s" or more', key="hang_timeout")
        check_positive(
            self,
            *("message_size", "headers", "min_data_rate", "handshake_timeout", "command_timeout"),
            *("data_timeout", "content_timeout", "session_timeout"),
        )
        if self.headers > _HEADERS_SIZE:
            raise ConfigError("expected 1MiB at most, because plugins read no more", key="headers")
        if self.reserved_sessions >= self.sessions:
            raise ConfigError(
                f"expected less than sessions ({self.sessions})", key="reserved_sessions"
            )
