"""A threaded, blocking SMTP server whose plugins are plain Python.

Plugin authors import from here. Everything else is internal.
"""

from minismtp.server import signals as signals  # before the imports that take time

# isort: split
import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # type checkers take a name that is imported as itself for a public one
    from minismtp import events as events
    from minismtp.config.types import ByteSize as ByteSize
    from minismtp.config.types import Rate as Rate
    from minismtp.config.types import SocketAddress as SocketAddress
    from minismtp.hooks.dns_zone import DnsRecord as DnsRecord
    from minismtp.hooks.dns_zone import DnsZone as DnsZone
    from minismtp.hooks.loader import plugin as plugin
    from minismtp.hooks.plugin_check import PluginCheck as PluginCheck
    from minismtp.hooks.specs import ServerInfo as ServerInfo
    from minismtp.hooks.specs import hookimpl as hookimpl
    from minismtp.mail.content import Content as Content
    from minismtp.mail.content import ContentWriter as ContentWriter
    from minismtp.mail.envelope import Delivery as Delivery
    from minismtp.mail.envelope import Destination as Destination
    from minismtp.mail.envelope import Envelope as Envelope
    from minismtp.mail.envelope import Local as Local
    from minismtp.mail.envelope import Recipient as Recipient
    from minismtp.mail.envelope import Relay as Relay
    from minismtp.mail.envelope import Several as Several
    from minismtp.mail.headers import Headers as Headers
    from minismtp.mail.headers import fields_end as fields_end
    from minismtp.mail.headers import format_field as format_field
    from minismtp.mail.headers import header_end as header_end
    from minismtp.mail.links import Link as Link
    from minismtp.mail.message import Message as Message
    from minismtp.mail.mime_conversion import converted as converted
    from minismtp.mail.recipient_verdict import RecipientVerdict as RecipientVerdict
    from minismtp.mail.results import AuthResult as AuthResult
    from minismtp.mail.results import Finding as Finding
    from minismtp.mail.results import findings_of as findings_of
    from minismtp.mail.results import quoted as quoted
    from minismtp.mail.results import results_of as results_of
    from minismtp.mail.session import Session as Session
    from minismtp.mail.text_parts import TextPart as TextPart
    from minismtp.mail.text_parts import Texts as Texts
    from minismtp.mail.text_parts import texts_of as texts_of
    from minismtp.runtime.own_metrics import Instrumented as Instrumented
    from minismtp.runtime.own_metrics import OwnCounter as OwnCounter
    from minismtp.runtime.own_metrics import OwnGauge as OwnGauge
    from minismtp.runtime.own_metrics import OwnHistogram as OwnHistogram
    from minismtp.services.http_client import Answer as Answer
    from minismtp.services.http_client import WebService as WebService
    from minismtp.services.public_suffix import registrable_domain as registrable_domain
    from minismtp.services.remote import Breaker as Breaker
    from minismtp.services.remote import Line as Line
    from minismtp.services.remote import Remote as Remote
    from minismtp.services.remote import RemoteError as RemoteError
    from minismtp.services.resolver import Found as Found
    from minismtp.services.resolver import Resolver as Resolver
    from minismtp.services.resolver import UnansweredError as UnansweredError
    from minismtp.services.shared_state import Claim as Claim
    from minismtp.services.shared_state import State as State
    from minismtp.services.smtp_client import SmtpClient as SmtpClient
    from minismtp.smtp.client_reply import HostReply as HostReply
    from minismtp.smtp.dot_stuffing import dotted as dotted
    from minismtp.smtp.grammar import encode_xtext as encode_xtext
    from minismtp.smtp.sasl import Credentials as Credentials
    from minismtp.smtp.sasl import StoredKey as StoredKey
    from minismtp.storage.quarantine import QuarantineStore as QuarantineStore
    from minismtp.values.address import Address as Address
    from minismtp.values.cache import BoundedCache as BoundedCache
    from minismtp.values.clock import steady_time as steady_time
    from minismtp.values.durable_files import DurableFile as DurableFile
    from minismtp.values.durable_files import EmptyFileError as EmptyFileError
    from minismtp.values.durable_files import MisdirectedError as MisdirectedError
    from minismtp.values.durable_files import WatchedFiles as WatchedFiles
    from minismtp.values.durable_files import atomic_write as atomic_write
    from minismtp.values.durable_files import check_written as check_written
    from minismtp.values.durable_files import make_directory as make_directory
    from minismtp.values.durable_files import read_file as read_file
    from minismtp.values.durable_files import sync_directory as sync_directory
    from minismtp.values.durable_files import warn_of_readers as warn_of_readers
    from minismtp.values.group_sync import GroupSync as GroupSync
    from minismtp.values.passwords import check_stored_password as check_stored_password
    from minismtp.values.passwords import verify_password as verify_password
    from minismtp.values.peer import in_networks as in_networks
    from minismtp.values.reply import Defer as Defer
    from minismtp.values.reply import Disconnect as Disconnect
    from minismtp.values.reply import Reject as Reject
    from minismtp.values.reply import Reply as Reply
    from minismtp.values.stash import Stash as Stash
    from minismtp.values.stash import StashKey as StashKey
    from minismtp.values.threads import start_thread as start_thread
    from minismtp.values.threads import surviving as surviving
    from minismtp.values.user_names import folded_local as folded_local
    from minismtp.values.user_names import folded_name as folded_name
    from minismtp.values.user_names import prepared_password as prepared_password

__version__ = "1.0.0"

# The same names once more, by the module that has them. A module is imported when a name of it is
# first used, because all of them together take a third of a second that most commands can spare.
_MODULES: Final = {
    "config.types": "ByteSize Rate SocketAddress",
    "hooks.dns_zone": "DnsRecord DnsZone",
    "hooks.loader": "plugin",
    "hooks.plugin_check": "PluginCheck",
    "hooks.specs": "ServerInfo hookimpl",
    "mail.content": "Content ContentWriter",
    "mail.envelope": "Delivery Destination Envelope Local Recipient Relay Several",
    "mail.headers": "Headers fields_end format_field header_end",
    "mail.links": "Link",
    "mail.message": "Message",
    "mail.mime_conversion": "converted",
    "mail.recipient_verdict": "RecipientVerdict",
    "mail.results": "AuthResult Finding findings_of quoted results_of",
    "mail.session": "Session",
    "mail.text_parts": "TextPart Texts texts_of",
    "runtime.own_metrics": "Instrumented OwnCounter OwnGauge OwnHistogram",
    "services.http_client": "Answer WebService",
    "services.public_suffix": "registrable_domain",
    "services.remote": "Breaker Line Remote RemoteError",
    "services.resolver": "Found Resolver UnansweredError",
    "services.shared_state": "Claim State",
    "services.smtp_client": "SmtpClient",
    "smtp.client_reply": "HostReply",
    "smtp.dot_stuffing": "dotted",
    "smtp.grammar": "encode_xtext",
    "smtp.sasl": "Credentials StoredKey",
    "storage.quarantine": "QuarantineStore",
    "values.address": "Address",
    "values.cache": "BoundedCache",
    "values.clock": "steady_time",
    "values.durable_files": (
        "DurableFile EmptyFileError MisdirectedError WatchedFiles atomic_write "
        "check_written make_directory read_file sync_directory warn_of_readers"
    ),
    "values.group_sync": "GroupSync",
    "values.passwords": "check_stored_password verify_password",
    "values.peer": "in_networks",
    "values.reply": "Defer Disconnect Reject Reply",
    "values.stash": "Stash StashKey",
    "values.threads": "start_thread surviving",
    "values.user_names": "folded_local folded_name prepared_password",
}
_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = ["events"]
__all__ += list(_MODULE_OF)

if not TYPE_CHECKING:  # or mypy would accept any name

    def __getattr__(name: str) -> object:
        if name == "events":
            return importlib.import_module("minismtp.events")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'minismtp' has no attribute {name!r}")
        module = importlib.import_module(f"minismtp.{_MODULE_OF[name]}")
        globals()[name] = getattr(module, name)
        return globals()[name]
