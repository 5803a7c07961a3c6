"""A threaded, blocking SMTP server whose plugins are plain Python.

What plugin authors import stands here; everything else is internal.
"""

from minismtp.address import Address
from minismtp.delivery import Delivery, Destination
from minismtp.envelope import Credentials, Envelope, Local, Recipient, Relay, Several
from minismtp.files import (
    WatchedFiles,
    atomic_write,
    make_directory,
    sync_directory,
    warn_of_readers,
)
from minismtp.groupsync import GroupSync
from minismtp.hookspecs import ServerInfo, hookimpl
from minismtp.message import Content, Message
from minismtp.passwords import check_stored_password, verify_password
from minismtp.plugins import plugin
from minismtp.reply import Defer, Disconnect, Reject, Reply
from minismtp.session import Session
from minismtp.smtp.sasl import StoredKey
from minismtp.stash import Stash, StashKey

__version__ = "0.1.0"

__all__ = [
    "Address",
    "Content",
    "Credentials",
    "Defer",
    "Delivery",
    "Destination",
    "Disconnect",
    "Envelope",
    "GroupSync",
    "Local",
    "Message",
    "Recipient",
    "Reject",
    "Relay",
    "Reply",
    "ServerInfo",
    "Session",
    "Several",
    "Stash",
    "StashKey",
    "StoredKey",
    "WatchedFiles",
    "atomic_write",
    "check_stored_password",
    "hookimpl",
    "make_directory",
    "plugin",
    "sync_directory",
    "verify_password",
    "warn_of_readers",
]
