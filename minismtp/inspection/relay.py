"""Whether the server is an open relay, found by offering it mail as a stranger would."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from minismtp.config import Config, Listener
from minismtp.hooks.facade import Hooks
from minismtp.hooks.loader import PluginSet
from minismtp.inspection.problem import Problem, error, warning
from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.session import Session
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.session.in_memory import Dialogue
from minismtp.session.listener_context import ListenerContext
from minismtp.values.address import Address
from minismtp.values.reply import Verdict

# The addresses for documentation (RFC 5737, 3849, 9637) are in no real network. A configuration
# made from an example may trust them; then other addresses are tried. A network that is as wide as
# _WIDEST, or wider, does not count as trusted.
_FOREIGN_CLIENTS: Final = (
    ("192.0.2.1", "198.51.100.1", "203.0.113.1"),
    ("2001:db8::1", "2001:db8:ffff::1", "3fff::1"),
)
_WIDEST: Final = {4: 8, 6: 16}
_STEP: Final = 0x9E3779B1  # an odd number, whose multiples are spread over all addresses
_TRIES: Final = 1000
# Names below `invalid` are in no DNS (RFC 6761 section 6.4).
_RECIPIENT: Final = "probe@relay-test.invalid"
_SENDER: Final = "outsider@sender-test.invalid"
_HELO: Final = "outsider.invalid"


def check_relay(
    config: Config, listener: Listener, plugins: PluginSet, metrics: Metrics, log: Log
) -> Iterator[Problem]:
    """Offer mail of a foreign client for a foreign recipient, as tests for open relays do."""
    context = ListenerContext.of(config, listener, plugins, metrics, log)
    for peer in _foreign_clients(plugins.hooks(listener.name)):
        dialogue = Dialogue(service=context, peer=peer)
        reply = _refusal(dialogue)
        if reply.startswith("4"):
            # A filter such as greylisting may accept the mail later, so ask for the route alone.
            reply = _refused_route(plugins.hooks(listener.name), dialogue.session)
        if not reply:
            text = f"open relay: {peer} may send mail to {_RECIPIENT}"
            yield error(
                config, listener.key, f"{text}; expected routes for users and trusted networks only"
            )
            return
        if reply.startswith("4"):
            message = f"cannot tell whether it is an open relay: the test got {reply!r}"
            yield warning(config, listener.key, message)
            return


def _foreign_clients(hooks: Hooks) -> Iterator[str]:
    """Yield one address of each family, outside of all networks that plugins trust."""
    networks = [each for each in hooks.networks if each.prefixlen > _WIDEST[each.version]]
    for first in _FOREIGN_CLIENTS:
        found = (each for each in _candidates(first) if not any(each in net for net in networks))
        yield str(next(found, first[0]))


def _candidates(first: tuple[str, ...]) -> Iterator[IPv4Address | IPv6Address]:
    yield from map(ip_address, first)
    for number in range(1, _TRIES):
        spread = number * _STEP & 0xFFFFFFFF
        whole = IPv6Address(spread << 96 | 1) if ":" in first[0] else IPv4Address(spread)
        if whole.is_global:
            yield whole


def _refusal(dialogue: Dialogue) -> str:
    """Offer mail for a foreign recipient. Return the refusal, or nothing if it is accepted."""
    greeting = "LHLO" if dialogue.service.lmtp else "EHLO"
    replies = [
        dialogue.banner,
        dialogue.send(f"{greeting} {_HELO}"),
        dialogue.send(f"MAIL FROM:<{_SENDER}>"),
        dialogue.send(f"RCPT TO:<{_RECIPIENT}>"),
    ]
    dialogue.send("QUIT")
    return next((reply for reply in replies if not reply.startswith("2")), "")


def _refused_route(hooks: Hooks, session: Session) -> str:
    """Ask only for a route to a foreign recipient. Return the refusal, or nothing for a route."""
    envelope = Envelope(
        id=session.id,
        reverse_path=Address.parse(_SENDER),
        listener=session.listener,
        peer=session.peer,
        helo=_HELO,
        login=None,
        arrived=session.started,
    )
    try:
        route = hooks.route(session, envelope, Recipient(Address.parse(_RECIPIENT)))
    except Verdict as verdict:
        return str(verdict.reply)
    return "" if route is not None else "550 no plugin routes it"
