"""A threaded, blocking SMTP server whose plugins are plain Python.

Plugin authors import from here. Everything else is internal.
"""

from minismtp.server import startup_signals as startup_signals  # before the imports that take time

# isort: split
import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from minismtp import events
    from minismtp.config.types import ByteSize, Rate, SocketAddress
    from minismtp.hooks.loader import plugin
    from minismtp.hooks.specs import ServerInfo, hookimpl
    from minismtp.mail.content import Content, ContentWriter
    from minismtp.mail.delivery import Delivery, Destination
    from minismtp.mail.envelope import Envelope, Local, Recipient, Relay, Several
    from minismtp.mail.headers import Headers, fields_end, format_field, header_end
    from minismtp.mail.message import Message
    from minismtp.mail.mime_conversion import converted
    from minismtp.mail.results import AuthResult, Finding, findings_of, quoted, results_of
    from minismtp.mail.session import Session
    from minismtp.services.http_client import Answer, WebService
    from minismtp.services.remote import Breaker, Line, Remote, RemoteError
    from minismtp.services.resolver import Found, Resolver, UnansweredError
    from minismtp.services.shared_state import Claim, State
    from minismtp.services.smtp_client import SmtpClient
    from minismtp.smtp.client_reply import HostReply
    from minismtp.smtp.dot_stuffing import dotted
    from minismtp.smtp.sasl import Credentials, StoredKey
    from minismtp.storage.quarantine import QuarantineStore
    from minismtp.values.address import Address
    from minismtp.values.cache import BoundedCache
    from minismtp.values.clock import steady_time
    from minismtp.values.durable_files import (
        DurableFile,
        EmptyFileError,
        MisdirectedError,
        WatchedFiles,
        atomic_write,
        check_written,
        make_directory,
        read_file,
        sync_directory,
        warn_of_readers,
    )
    from minismtp.values.group_sync import GroupSync
    from minismtp.values.passwords import check_stored_password, verify_password
    from minismtp.values.reply import Defer, Disconnect, Reject, Reply
    from minismtp.values.stash import Stash, StashKey
    from minismtp.values.threads import start_thread, surviving
    from minismtp.values.user_names import folded_local, folded_name, prepared_password

__version__ = "0.1.0"

__all__ = [
    "Address",
    "Answer",
    "AuthResult",
    "BoundedCache",
    "Breaker",
    "ByteSize",
    "Claim",
    "Content",
    "ContentWriter",
    "Credentials",
    "Defer",
    "Delivery",
    "Destination",
    "Disconnect",
    "DurableFile",
    "EmptyFileError",
    "Envelope",
    "Finding",
    "Found",
    "GroupSync",
    "Headers",
    "HostReply",
    "Line",
    "Local",
    "Message",
    "MisdirectedError",
    "QuarantineStore",
    "Rate",
    "Recipient",
    "Reject",
    "Relay",
    "Remote",
    "RemoteError",
    "Reply",
    "Resolver",
    "ServerInfo",
    "Session",
    "Several",
    "SmtpClient",
    "SocketAddress",
    "Stash",
    "StashKey",
    "State",
    "StoredKey",
    "UnansweredError",
    "WatchedFiles",
    "WebService",
    "atomic_write",
    "check_stored_password",
    "check_written",
    "converted",
    "dotted",
    "events",
    "fields_end",
    "findings_of",
    "folded_local",
    "folded_name",
    "format_field",
    "header_end",
    "hookimpl",
    "make_directory",
    "plugin",
    "prepared_password",
    "quoted",
    "read_file",
    "results_of",
    "start_thread",
    "steady_time",
    "surviving",
    "sync_directory",
    "verify_password",
    "warn_of_readers",
]

# The same names once more, by the module that has them. A module is imported when a name of it is
# first used, because all of them together take a third of a second that most commands can spare.
_MODULES: Final = {
    "config.types": "ByteSize Rate SocketAddress",
    "hooks.loader": "plugin",
    "hooks.specs": "ServerInfo hookimpl",
    "mail.content": "Content ContentWriter",
    "mail.delivery": "Delivery Destination",
    "mail.envelope": "Envelope Local Recipient Relay Several",
    "mail.headers": "Headers fields_end format_field header_end",
    "mail.message": "Message",
    "mail.mime_conversion": "converted",
    "mail.results": "AuthResult Finding findings_of quoted results_of",
    "mail.session": "Session",
    "services.http_client": "Answer WebService",
    "services.remote": "Breaker Line Remote RemoteError",
    "services.resolver": "Found Resolver UnansweredError",
    "services.shared_state": "Claim State",
    "services.smtp_client": "SmtpClient",
    "smtp.client_reply": "HostReply",
    "smtp.dot_stuffing": "dotted",
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
    "values.reply": "Defer Disconnect Reject Reply",
    "values.stash": "Stash StashKey",
    "values.threads": "start_thread surviving",
    "values.user_names": "folded_local folded_name prepared_password",
}

if not TYPE_CHECKING:  # or mypy would accept any name

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names.split():
                value = getattr(importlib.import_module(f"minismtp.{module}"), name)
                globals()[name] = value
                return value
        if name == "events":
            return importlib.import_module("minismtp.events")
        raise AttributeError(f"module 'minismtp' has no attribute {name!r}")
