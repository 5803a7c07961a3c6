"""Why the other parameters of Postfix have no counterpart. Nothing is dropped in silence."""

from __future__ import annotations

import re
from typing import Final

from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.main_cf import is_known
from minismtp.cli.postfix_files.text import PostfixError

_PARTS: Final = "Postfix is many programs; minismtp is one"
_LOCAL: Final = "minismtp takes mail by SMTP and has no command sendmail"
_DATABASE: Final = "minismtp has no such cache"

#: Why parameters need no counterpart, by patterns of which the first decides.
_REASONS: Final = {
    r"compatibility_level|\w+_compatibility": "it is about versions of Postfix",
    r"(?:command|daemon|data|queue|mail_spool|meta|shlib|html|readme|sample|manpage)_directory"
    r"|(?:newaliases|mailq|sendmail)_path|setgid_group|mail_owner|default_privs"
    r"|config_directory|alternate_config_directories|multi_\w+|openssl_path": _PARTS,
    r"\w+_service_name|\w*process_limit|\w*daemon_timeout|ipc_\w+|trigger_timeout"
    r"|max_idle|max_use|fork_\w+|service_throttle_time|process_id_directory|proxy_\w+"
    r"|import_environment|export_environment|daemon_table_open_error_is_fatal"
    r"|default_database_type|\w*_cache_database|\w*_cache_timeout|address_verify_\w+"
    r"|in_flow_delay|transport_retry_time|qmgr_\w+|queue_\w+": _PARTS,
    r"biff": "there is no notification of logged-in shells",
    r"append_(?:dot_mydomain|at_myorigin)|swap_bangpath|\w+_canonical_classes|canonical_classes|allow_percent_hack|rewrite_service"
    r"|local_header_rewrite_clients|remote_header_rewrite_domain|myorigin"
    r"|allow_min_user|strict_\w+|resolve_\w+|empty_address_\w+": (
        "addresses are not rewritten; an address without a domain gets that of the host"
    ),
    r"smtpd_banner|mail_name|mail_version|mail_release_date": "the greeting has no own text",
    r"maillog_\w+|syslog_\w+|debug_\w+|smtpd?_tls_loglevel|smtpd?_log\w+|enable_errors_to"
    r"|soft_bounce|notify_classes|\w+_notice_recipient|postlog\w+|respectful_logging"
    r"|smtpd_tls_received_header|enable_long_queue_ids|hash_queue_\w+": (
        "see [log], [metrics] and `minismtp explain`"
    ),
    r"smtpd?_tls_session_\w+|tls_(?:random|session|daemon|dane|ssl|high|medium|low|export|null"
    r"|eecdh|disable|append|preempt|wildcard|legacy|config|ticket|fast|server|tlsa)\w*"
    r"|smtpd?_tls_(?:dh1024|dh512|eecdh|exclude|mandatory|fingerprint|always|enable|ask|req"
    r"|CApath|ccert|scert|verify|secure|note|block|connection|dane|force|servername)\w*"
    r"|smtpd?_tls_(?:protocols|ciphers)|smtpd_starttls_timeout|smtp_starttls_timeout": (
        "the defaults of minismtp follow RFC 9325; see `ciphers` and [tls]"
    ),
    r"smtp_tls_(?:cert|key|eccert|eckey|dcert|dkey|chain)\w*": (
        "minismtp shows no certificate to other servers"
    ),
    r"smtpd_sasl_(?:local_domain|security_options|tls_security_options|response_limit"
    r"|authenticated_header|exceptions_networks|mechanism_filter|service)|broken_sasl_auth_\w+"
    r"|cyrus_sasl_config_path": "the plugin that checks passwords decides, inside TLS only",
    r"smtp_sasl_\w+": "PLAIN and LOGIN are used, inside TLS only",
    r"(?:smtpd|smtp|postscreen)_discard_ehlo_\w+|smtputf8_\w+|disable_mime_\w+|detect_8bit\w*"
    r"|disable_dns_lookups|smtp_(?:always|never)_send_ehlo|ignore_mx_lookup_error"
    r"|smtp_pix_\w+|smtp_quote_\w+|smtp_randomize_\w+|smtp_skip_\w+|smtp_line_length_limit"
    r"|smtp_cname_\w+|smtp_dns_\w+|smtp_host_lookup|smtp_mx_\w+|smtp_address_preference"
    r"|smtp_balance_\w+|smtp_defer_\w+|smtp_send_\w+|smtp_rset_\w+|smtp_quit_\w+|smtp_mail_\w+"
    r"|smtp_rcpt_\w+|smtp_data_\w+|smtp_helo_timeout|smtp_xforward_\w+|smtp_connection_\w+"
    r"|smtp_reply_\w+|smtp_per_\w+|smtp_nested_\w+|smtp_mime_\w+|enable_original_recipient": (
        "minismtp does what the other server offers and RFC 5321 says; see docs/sending.md"
    ),
    r"smtpd_(?:error|soft_error|history|authorized|noop|per_record|end_of_data|helo|expansion"
    r"|null|tls_ask|policy|proxy|delay|peername|forbid|discard|dns|command|enforce|use"
    r"|recipient_overshoot|log|sasl|reject|min_data_rate)\w*|unknown_\w+|maps_rbl_\w+"
    r"|rbl_reply_maps|default_rbl_reply|\w+_reject_code|access_map_\w+|plaintext_reject_code": (
        "limits and replies of minismtp are its own; see [limits]"
    ),
    r"smtpd_client_\w+|anvil_\w+": "see sessions_per_ip of [limits], and rate_limit",
    r"milter_\w+": "the plugin milter speaks the versions 2 to 6 of the protocol",
    r"(?:virtual_(?:alias|mailbox)_(?:expansion|recursion|lock|address)\w*|virtual_\w*limit"
    r"|expand_owner_alias|propagate_\w+|owner_request_special|allow_mail_to_\w+|forward_path"
    r"|reset_owner_alias|recursive_\w+"
    r"|home_mailbox|mail_spool\w*|mailbox_\w+|local_\w+|command_\w+|deliver_lock_\w+"
    r"|frozen_delivered_to|prepend_delivered_header|stale_lock_time|duplicate_filter_limit)": (
        "it is about the programs of Postfix that store mail"
    ),
    r"authorized_\w+|default_verp_\w+|verp_\w+|always_add_missing_headers|sendmail_\w+"
    r"|undisclosed_\w+|mailq\w*|executable_\w+": _LOCAL,
}
_REASON: Final = re.compile("|".join(f"({pattern})" for pattern in _REASONS))
#: What a person has to look at, because mail would go or look otherwise.
_BY_HAND: Final = {
    "sender_dependent_relayhost_maps": "a plugin with the hook `destination` chooses by the sender",
    "sender_dependent_default_transport_maps": "a plugin with the hook `destination` chooses",
    "smtp_sender_dependent_authentication": "a plugin with the hook `destination` chooses",
    "default_transport": "mail goes by SMTP; see `smarthost` and [[outbound.routes]]",
    "relay_transport": "mail goes by SMTP; see `smarthost` and [[outbound.routes]]",
    "relay_recipient_maps": "relay does not know these recipients; the next server refuses others",
    "sender_bcc_maps": "a small plugin with on_message can add a recipient: docs/plugins.md",
    "recipient_bcc_maps": "an alias with two targets keeps a copy, for one recipient",
    "always_bcc": "a small plugin with on_message can add a recipient: docs/plugins.md",
    "canonical_maps": "addresses are not rewritten: a small plugin can do it, docs/plugins.md",
    "smtp_generic_maps": "addresses are not rewritten: a small plugin can do it, docs/plugins.md",
    "masquerade_domains": "addresses are not rewritten: a small plugin can do it, docs/plugins.md",
    "relocated_maps": "a plugin with the hook `route` can refuse with the new address",
    "smtp_bind_address": "the system chooses the address from which mail is sent",
    "smtp_bind_address6": "the system chooses the address from which mail is sent",
    "smtp_helo_name": "EHLO has the `hostname`",
    "proxy_interfaces": "set `addresses` of [dns] to the public addresses",
    "fallback_relay": "there is no second smarthost",
    "smtp_fallback_relay": "there is no second smarthost",
    "smtpd_restriction_classes": "see the plugin rules",
    "authorized_submit_users": "users submit mail by SMTP with a password",
    "permit_mx_backup_networks": "name the domains in `domains` of relay",
    "smtpd_milter_maps": "see `listeners` of the plugin milter",
    "virtual_mailbox_base": "set `path` of maildir",
}
_SRS: Final = ("sender_canonical_maps", "recipient_canonical_maps")


def carry_srs(migration: Migration) -> None:
    """Replace postsrsd, whose tables are tcp:localhost:10001 and :10002, or on a socket."""
    tables = [migration.value(name) for name in _SRS if migration.is_set(name)]
    if not any(":1000" in table or "srs" in table for table in tables):
        for name in _SRS:
            if migration.is_set(name):
                migration.by_hand(name, _BY_HAND["canonical_maps"])
        return
    if not migration.draft.has("mailboxes"):
        return
    migration.draft.plugin("mailboxes").set("srs_secret_file", "srs-secret", _SRS[0])
    for name in _SRS:
        migration.carried(name, "srs_secret_file of mailboxes, with a new secret")
    text = "bounces to addresses that postsrsd made are refused; wait until its old mail is gone"
    migration.by_hand(_SRS[0], text)


def carry_leftovers(migration: Migration) -> None:
    """Put every parameter that is in no list yet into one."""
    known = migration.report.parameters()
    mentioned = migration.main.mentioned()
    for service in migration.directory.services:
        texts = (setting.value for setting in service.options.values())
        mentioned.update(name for text in texts for name in re.findall(r"\$[({]?(\w+)", text))
    for name in migration.main.settings:
        if name not in known:
            _carry(migration, name, mentioned)
    for problem in migration.directory.problems:
        migration.by_hand("-", problem.text, problem.place)


def _carry(migration: Migration, name: str, mentioned: set[str]) -> None:
    try:
        value, is_default = migration.main.value(name), migration.main.is_default(name)
    except PostfixError as error:
        migration.by_hand(name, str(error))
        return
    if is_default:
        migration.unneeded(name, "it has the default of Postfix")
    elif name in _BY_HAND:
        if value:
            migration.by_hand(name, _BY_HAND[name])
        else:
            migration.unneeded(name, "it is empty")
    elif is_known(name):
        migration.unneeded(name, _reason(name))
    elif name in mentioned:
        migration.unneeded(name, "a name of your own, whose value is filled in where it stands")
    else:
        migration.by_hand(name, "Postfix has no such parameter; is it misspelled?")


def _reason(name: str) -> str:
    found = _REASON.fullmatch(name)
    if found is None or found.lastindex is None:
        return "minismtp has no such setting"
    return list(_REASONS.values())[found.lastindex - 1]
