"""From a domain name to a configuration that works: `minismtp setup`.

The answers come from options, else from the terminal. `plan` says which files they mean, `material`
makes keys and secrets, and `placement` puts all files into place or none. Before the configuration
gets its name, it is inspected as `minismtp check` does.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from minismtp.cli.common import (
    EXIT_CONFIG,
    EXIT_FAILURE,
    CommandError,
    UsageError,
    argument_type,
    fail,
    say,
)
from minismtp.cli.passwd import password_in
from minismtp.cli.setup import amend, host, material, report
from minismtp.cli.setup.answers import (
    LETSENCRYPT,
    Answers,
    Authority,
    CertificateChoice,
    CertificateFiles,
    authority,
    certificate_choice,
    host_name,
    mail_domain,
    user_name,
)
from minismtp.cli.setup.placement import Placement, pending
from minismtp.cli.setup.plan import Plan, first_plan
from minismtp.cli.setup.questions import Asker, likely_hostname
from minismtp.config import DEFAULT_FILE, text_of
from minismtp.config.mistakes import reason

_STATE_DIRECTORY: Final = Path("/var/lib/minismtp")
_UMASK: Final = 0o022  # else the server could not enter directories above its own


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    _add_places(parser)
    _add_answers(parser)
    _add_certificates(parser)
    parser.add_argument(
        "--no-dovecot",
        dest="dovecot",
        action="store_false",
        help="leave the configuration of Dovecot as its package brought it",
    )
    parser.add_argument(
        "--add-domain", metavar="DOMAIN", help="add one more domain to the configuration"
    )
    parser.add_argument("--yes", action="store_true", help="ask no questions")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the files without their secrets, and write nothing",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the files of --dry-run as JSON, ask nothing"
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=_path,
        metavar="FILE",
        help=f"default: $MINISMTP_CONFIG, else {DEFAULT_FILE}",
    )
    parser.add_argument(
        "--state-directory",
        type=_path,
        default=_STATE_DIRECTORY,
        metavar="DIR",
        help=f"the place of mail and queue; default: {_STATE_DIRECTORY}",
    )


def _add_answers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", help="the domain of the mail addresses, such as example.org")
    parser.add_argument(
        "--hostname", metavar="NAME", help="the name of this host, such as mx.example.org"
    )
    parser.add_argument(
        "--user", help="the first user, who gets a mailbox and a password, such as alice"
    )
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help='a file whose first line is the password of the user; "-" is standard input. Without'
        " it, you are asked in the terminal, or a password is made and shown once",
    )


def _add_certificates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--certificate",
        metavar="CHOICE",
        help='"acme" gets one from Let\'s Encrypt, to whose terms of service you agree by this;'
        ' "self-signed" makes one to begin with; "CERT,KEY" are the paths of one that you have.'
        " Default: self-signed",
    )
    parser.add_argument(
        "--acme-directory",
        metavar="URL",
        help="with acme: the directory of another authority than Let's Encrypt",
    )
    parser.add_argument(
        "--acme-ca",
        type=_path,
        metavar="FILE",
        help="a PEM file of the authorities that sign for the host of that directory; default:"
        " those that the system trusts",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the files, and say what to do next. Raise CommandError; then nothing is written."""
    if arguments.json and not arguments.dry_run:
        raise UsageError("--json is for --dry-run")
    asker = Asker(may_ask=sys.stdin.isatty() and not (arguments.yes or arguments.json))
    os.umask(_UMASK)
    named = arguments.config or _path(os.environ.get("MINISMTP_CONFIG") or str(DEFAULT_FILE))
    configuration: Path = named.absolute()
    arguments.written = False
    try:
        if pending(configuration.parent) and not arguments.dry_run:
            with Placement(configuration.parent, host.owner(host.account())):
                say(f"An earlier setup was cut off. {configuration.parent} is cleaned up.")
        if arguments.add_domain is not None:
            return _add_domain(arguments, asker, configuration)
        return _first(arguments, asker, configuration)
    except OSError as error:
        if arguments.written:
            raise
        left = pending(configuration.parent)
        end = "run it again, which takes back what it wrote" if left else "nothing was written"
        raise CommandError(f"{reason(error)}; {end}") from error
    except KeyboardInterrupt:
        if not arguments.written:
            fail("interrupted; nothing was written")
        raise


@argument_type
def _path(text: str) -> Path:
    """Return a path that can stand in the configuration, also in its comments."""
    if not text or not text.isprintable():
        raise ValueError(f"{text!r}: expected a path without control characters")
    return Path(text)


def _first(arguments: argparse.Namespace, asker: Asker, configuration: Path) -> int:
    present = host.found(configuration, ())
    if configuration in present:
        first_plan(_EXAMPLE, configuration, present)  # refuses before anything is asked
    domain = asker.answer(
        "--domain", arguments.domain, "the domain of your mail addresses", mail_domain, ""
    )
    hostname = asker.answer(
        "--hostname",
        arguments.hostname,
        "the name of this host, as others find it",
        host_name,
        likely_hostname(domain),
    )
    user = _user(arguments, asker, domain)
    certificate, of_authority = _certificate(arguments, asker)
    answers = Answers(
        domain=domain,
        hostname=hostname,
        user=user,
        certificate=certificate,
        state_directory=arguments.state_directory.absolute(),
        server_user=host.account(),
        authority=of_authority,
    )
    # Another place is a try, or a second server.
    whole = arguments.dovecot and answers.server_user and configuration == DEFAULT_FILE
    dovecot = host.untouched_dovecot(configuration.parent) if whole else None
    plan = first_plan(answers, configuration, present, dovecot)
    if isinstance(answers.certificate, CertificateFiles):
        host.check_certificate(*answers.certificate, hostname, answers.server_user)
    elif kept := [path for path in plan.kept if path.parent.name == "tls"]:
        host.check_certificate(kept[0], kept[1], hostname, answers.server_user)
    return _write(arguments, asker, plan, answers)


def _certificate(
    arguments: argparse.Namespace, asker: Asker
) -> tuple[CertificateChoice, Authority]:
    try:
        of_authority = authority(arguments.acme_directory, arguments.acme_ca)
    except ValueError as error:
        raise UsageError(str(error)) from None
    other = of_authority != LETSENCRYPT
    choice = asker.answer(
        "--certificate",
        "acme" if other and arguments.certificate is None else arguments.certificate,
        "the certificate: acme (from Let's Encrypt, if you agree to its terms of service),"
        " self-signed, or the paths CERT,KEY",
        certificate_choice,
        "acme" if asker.may_ask and material.has_acme() else "self-signed",
    )
    if other and choice != "acme":
        raise UsageError("--acme-directory is for --certificate acme")
    return choice, of_authority


def _add_domain(arguments: argparse.Namespace, asker: Asker, configuration: Path) -> int:
    first = ("domain", "hostname", "certificate", "acme_directory", "acme_ca")
    if any(getattr(arguments, option) is not None for option in first):
        raise UsageError("--add-domain takes --user and --password-file beside it")
    domain = asker.answer("--add-domain", arguments.add_domain, "a domain", mail_domain, "")
    host.check_link(configuration)
    if not configuration.exists():
        raise CommandError(
            f"{configuration} does not exist; without --add-domain, `minismtp setup` writes it"
        )
    present = amend.Present.of(configuration, text_of(configuration))
    amend.with_domain(present, domain)  # refuses before anything is asked
    user = _user(arguments, asker, domain)
    existing = host.found(configuration, amend.files_of(present, domain))
    plan = amend.added_plan(present, domain, user, existing)
    return _write(
        arguments,
        asker,
        plan,
        Answers(
            domain=domain,
            hostname="",
            user=user,
            certificate="self-signed",
            state_directory=arguments.state_directory,
            server_user=host.account(),
        ),
    )


def _user(arguments: argparse.Namespace, asker: Asker, domain: str) -> str:
    return asker.answer(
        "--user",
        arguments.user,
        f"the first user at {domain}",
        lambda text: user_name(text, domain),
        "",
    )


def _write(arguments: argparse.Namespace, asker: Asker, plan: Plan, answers: Answers) -> int:
    """Show a plan, and carry it out if the administrator agrees."""
    owner = host.owner(answers.server_user)
    state = [] if arguments.add_domain else [answers.state_directory]
    host.check_places(plan, *state)
    if arguments.dry_run:
        say(*(report.as_json if arguments.json else report.dry_run)(plan, owner))
        return 0
    material.check_packages(acme=answers.certificate == "acme")
    password, shown = _password(arguments, asker) if plan.needs_password else ("", False)
    say(*report.announced(plan, owner))
    if not asker.confirm("Write them?"):
        return fail("nothing was written", EXIT_FAILURE)
    contents = material.contents(plan, answers.hostname, answers.address, password)
    configuration = plan.configuration.path
    with Placement(configuration.parent, owner) as placement:
        placement.stage(
            plan.directories,
            [
                (file.path, content, file.octets_before)
                for file, content in zip(plan.files, contents, strict=True)
            ],
        )
        placement.place()
        for directory in state:
            placement.make(directory, host.state_owner(answers.server_user))
        if not host.passed(contents[-1].decode(), configuration):
            return fail("nothing was written, because of the errors above", EXIT_CONFIG)
        placement.commit()
        arguments.written = True
    added = bool(arguments.add_domain)
    say(*report.finished(plan, answers, password if shown else "", added=added))
    return 0


def _password(arguments: argparse.Namespace, asker: Asker) -> tuple[str, bool]:
    """Return the password of the user, and whether it was made and has to be shown."""
    if arguments.password_file is not None:
        return _given_password(arguments.password_file), False
    given = asker.password()
    return (given, False) if given else (material.new_password(), True)


def _given_password(file: str) -> str:
    """Return the password in a file, "-" for standard input. Raise OSError and UsageError."""
    if not file:
        raise UsageError('--password-file: expected the path of a file, or "-"')
    try:
        if file == "-":
            found = password_in(sys.stdin.buffer)
        else:
            with Path(file).open("rb") as opened:
                found = password_in(opened)
    except ValueError as error:
        raise UsageError(f"--password-file: {file} {error}") from None
    if not found:
        raise UsageError(f"--password-file: {file} has no password in its first line")
    return found


_EXAMPLE: Final = Answers(
    domain="example.org",
    hostname="mx.example.org",
    user="alice",
    certificate=CertificateFiles(Path("/"), Path("/")),
    state_directory=_STATE_DIRECTORY,
)
