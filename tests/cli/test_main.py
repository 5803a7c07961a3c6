import io
import json
import os
import pty
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minismtp import __version__
from minismtp.cli.arguments import EXAMPLES
from minismtp.cli.main import COMMANDS, main, parser
from minismtp.smtp.sasl import StoredKey, derive_key
from minismtp.values.passwords import verify_password
from minismtp.values.version import Version

LISTENER = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
MAILBOXES = '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.org"]\n'
MAILDIR = '[[plugins]]\nuse = "maildir"\npath = "mail/{local}"\n'
SOUND = LISTENER + MAILBOXES + MAILDIR
PLUGIN = """
from minismtp import hookimpl, plugin
@plugin
class Mine:
    @hookimpl
    def on_rcpt(self, recipient):
        pass
"""

Write = Callable[[str], str]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's configuration, and keep its directories clean."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINISMTP_CONFIG", raising=False)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr("minismtp.config.DEFAULT_FILE", tmp_path / "no.toml")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a configuration and returns its name."""

    def to_file(text: str) -> str:
        path = tmp_path / "x.toml"
        path.write_text(text)
        return str(path)

    return to_file


BROKEN = {
    "a table is not closed": ("[[listeners]\n", ": expected ']]' at the end of an array"),
    "a key is misspelt": ("[limits]\nmesage_size = 5", "limits.mesage_size: unknown key; did you"),
    "a size has an odd unit": (
        '[limits]\nmessage_size = "25 megs"',
        'limits.message_size: expected a size such as 26214400, "25MiB"',
    ),
    "a number is text": (
        '[limits]\nrecipients = "many"',
        "limits.recipients: expected integer, got string",
    ),
    "nothing listens": ("", "listeners: expected at least one [[listeners]] table"),
    "an address lacks its port": (
        LISTENER.replace(":0", ""),
        "listeners[0].address: expected an address such as",
    ),
    "TLS has no certificate": (
        LISTENER.replace("none", "starttls"),
        'listeners[0].tls: "starttls" needs certificate and key in [tls]',
    ),
    "the certificate is missing": (
        f'{SOUND}[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n',
        "c.pem: No such file or directory",
    ),
    "the certificate is something else": (
        f'{SOUND}[tls]\ncertificate = "x.toml"\nkey = "x.toml"\n',
        "are not a pair of a PEM certificate and its key",
    ),
    "passwords would travel in clear": (
        LISTENER.replace("127.0.0.1", "0.0.0.0") + 'kind = "submission"\n',  # noqa: S104 - text
        "listeners[0].tls: a submission listener outside loopback must not",
    ),
    "no such plugin": (
        SOUND.replace('"maildir"', '"mialdir"'),
        "plugins[1].use: no plugin is called 'mialdir'; did you mean 'maildir'?",
    ),
    "a plugin's option is misspelt": (
        SOUND.replace("path", "pth"),
        "plugins[1].pth: unknown key; did you mean 'path'?",
    ),
    "a plugin's option is missing": (
        f'{LISTENER}[[plugins]]\nuse = "maildir"\n',
        "plugins[0].path: this key is required",
    ),
    "a plugin refuses its options": (
        SOUND.replace('["example.org"]', "[]"),
        "plugins[0].domains: expected at least one domain",
    ),
    "a plugin's file is missing": (
        f'{SOUND}[[plugins]]\nuse = "password_file"\npath = "passwords"\n',
        "passwords: No such file or directory",
    ),
    "a plugin names no listener": (
        f'{SOUND}listeners = ["smpt"]\n',
        "plugins[1].listeners[0]: no listener is called 'smpt'; did you mean 'smtp'?",
    ),
    "two plugins share a name": (SOUND + MAILDIR, "plugins[2].name: 'maildir' is taken by"),
    "a hook is misspelt": (
        f'plugin_path = ["."]\n{SOUND}[[plugins]]\nuse = "misspelt"\n',
        "no hook is called 'on_rctp'; did you mean 'on_rcpt'?",
    ),
    "a plugin has a syntax error": (
        f'plugin_path = ["."]\n{SOUND}[[plugins]]\nuse = "unfinished"\n',
        "unfinished.py:1:",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_check_refuses_a_configuration_where(
    case: str, write: Write, tmp_path: Path, capsys: Capture
) -> None:
    text, expected = BROKEN[case]
    (tmp_path / "misspelt.py").write_text(PLUGIN.replace("on_rcpt", "on_rctp"))
    (tmp_path / "unfinished.py").write_text("class Unfinished(\n")
    file = write(text)
    assert main(["check", "--config", file]) == 78
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert all(line.startswith(f"error: {file}: ") for line in lines)
    plain = [re.sub(r"(\w+\[\d+\])( \S+)?, line \d+: (?=\S+: )", r"\1.", line) for line in lines]
    assert any(expected in re.sub(r"( \w+)?, line \d+", "", line) for line in plain)
    assert "Traceback" not in output.err
    assert output.out == ""


@pytest.mark.parametrize("command", ["check", "serve", "hooks", "plugins"])
def test_command_with_a_broken_configuration_ends_with_78_and_one_line(
    command: str, write: Write, capsys: Capture
) -> None:
    file = write(f"workers = -1\n{LISTENER}")
    assert main([command, "--config", file]) == 78
    prefix = "error" if command == "check" else "minismtp"
    end = "configuration refused: 1 error\n" if command == "check" else ""
    problem = f"{prefix}: {file}: workers, line 1: expected integer >= 0\n"
    assert capsys.readouterr().err == problem + end


def test_check_accepts_a_sound_configuration(write: Write, capsys: Capture) -> None:
    file = write(SOUND)
    assert main(["check", "--strict", "--config", file]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"checked: {file}\n")
    assert output.out.endswith("configuration ok\n")
    assert output.err == ""


def test_check_accepts_what_runs_without_any_file(capsys: Capture) -> None:
    assert main(["check"]) == 0
    output = capsys.readouterr()
    assert output.out.endswith("no configuration: only the demo would run, with 1 warning\n")
    assert ".toml does not exist, so `minismtp serve` would run the built-in demo" in output.err


def test_warnings_fail_only_a_strict_check(write: Write, capsys: Capture) -> None:
    file = write(LISTENER + MAILBOXES)
    assert main(["check", "--config", file]) == 0
    output = capsys.readouterr()
    assert output.err.startswith(f"warning: {file}: plugins, line 5: no plugin stores mail")
    assert output.out.endswith("configuration ok, with 1 warning\n")
    assert main(["check", "--strict", "--config", file]) == 78
    assert capsys.readouterr().out == ""


def test_check_reads_the_file_of_the_environment(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINISMTP_CONFIG", write("workers = -1"))
    assert main(["check"]) == 78


def test_hooks_are_explained_and_put_in_their_order(
    write: Write, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    filters = (
        '[[plugins]]\nuse = "mine"\nname = "first"\nmode = "shadow"\n'
        '[[plugins]]\nuse = "mine"\nname = "second"\nlisteners = ["smtp"]\n'
    )
    file = write(f'plugin_path = ["."]\n{LISTENER}{filters}{MAILBOXES}{MAILDIR}')
    assert main(["hooks", "--config", file]) == 0
    output = capsys.readouterr().out
    assert "\nroute(session, envelope, recipient)\n    Return where a recipient's copy" in output
    assert "\non_stop()\n" in output
    order = output.partition(f"Order of the plugins ({file}):\n")[2].splitlines()
    assert "    on_rcpt: first (shadow), second (only on smtp)" in order
    assert "    route: mailboxes" in order


def test_plugins_are_listed_with_their_options(capsys: Capture) -> None:
    assert main(["plugins"]) == 0
    entry = capsys.readouterr().out.partition("maildir (minismtp ")[2].partition("\n\n")[0]
    lines = entry.splitlines()
    assert lines[0] == f"{__version__})"
    assert lines[1].startswith("    Store each copy in the Maildir")
    assert "    path: path, required" in lines
    assert any(line.startswith("    sync: ") and 'default "file"' in line for line in lines)


def test_plugin_that_cannot_be_used_is_listed_with_the_reason(
    write: Write, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "needy.py").write_text("import not_installed_anywhere\n")
    assert main(["plugins", "--config", write(f'plugin_path = ["."]\n{SOUND}')]) == 0
    output = capsys.readouterr().out
    assert f"needy ({tmp_path / 'needy.py'})\n    cannot be used: " in output
    assert "No module named 'not_installed_anywhere'" in output


def test_schema_is_json_with_the_shipped_plugins(capsys: Capture) -> None:
    assert main(["schema"]) == 0
    document = json.loads(capsys.readouterr().out)
    alternatives = document["properties"]["plugins"]["items"]["oneOf"]
    assert {"maildir", "mailboxes", "password_file"} <= {item["title"] for item in alternatives}


def test_version_is_told(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"minismtp {__version__}\n"


def test_help_lists_the_commands(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"\n    {name} " in output for name in ("serve", "check", "hooks", "plugins"))


@pytest.mark.parametrize(
    "arguments", [[], ["chek"], ["check", "--strickt"], ["passwd", "file"], ["check", "--config"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    assert re.fullmatch(r"minismtp: .*; see `minismtp .*--help`\n", capsys.readouterr().err)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Return a function that puts octets into standard input."""

    def put(octets: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(octets)))

    return put


Typed = Callable[[bytes], None]


def users(path: Path) -> dict[str, str]:
    """Return the hash of each user, and after a colon the keys for SCRAM."""
    return dict(line.split(":", 1) for line in path.read_text().splitlines())


def test_passwd_makes_a_file_for_its_owner_alone(typed: Typed, tmp_path: Path) -> None:
    typed(b"se:cret word\r\nmore\n")
    path = tmp_path / "passwords"
    assert main(["passwd", str(path), "anna"]) == 0
    stored, _, keys = users(path)["anna"].partition(":")
    assert verify_password("se:cret word", stored)
    key = StoredKey.parse(keys)
    assert key == derive_key("se:cret word", key.salt)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_passwd_replaces_one_user_and_keeps_the_rest(typed: Typed, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("# staff\nanna:old\nannabel:x\nbob:y\n")
    path.chmod(0o640)
    typed(b"new\n")
    assert main(["passwd", str(path), "anna"]) == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "# staff"
    assert lines[1].startswith("anna:$scrypt$")
    assert lines[2:] == ["annabel:x", "bob:y"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_passwd_takes_the_scheme(typed: Typed, tmp_path: Path) -> None:
    typed(b"secret\n")
    assert main(["passwd", "--scheme", "argon2id", str(tmp_path / "passwords"), "anna"]) == 0
    assert users(tmp_path / "passwords")["anna"].startswith("$argon2id$")


def test_passwd_writes_through_a_symbolic_link(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    typed(b"secret\n")
    assert main(["passwd", str(tmp_path / "link"), "anna"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert "anna" in users(tmp_path / "real")


def test_passwd_removes_a_user(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("anna:x\nbob:y\n")
    assert main(["passwd", "--remove", str(path), "anna"]) == 0
    assert path.read_text() == "bob:y\n"


def test_file_without_its_last_user_says_that_this_is_on_purpose(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("anna:x\n")
    assert main(["passwd", "--remove", str(path), "anna"]) == 0
    assert path.read_text() == "# no users\n"


def test_passwd_cannot_remove_who_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "passwords"
    path.write_text("bob:y\n")
    assert main(["passwd", "--remove", str(path), "anna"]) == 1
    assert capsys.readouterr().err == f"minismtp: {path}: no user is called 'anna'\n"
    assert path.read_text() == "bob:y\n"


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", "the password is empty"),
        (b"\n", "the password is empty"),
        (b"\xff\n", "standard input is not UTF-8"),
        (b"a\0b\n", "standard input has a control character, which no user can type"),
        (b"x" * 5000, "standard input has more than 4096 octets in its first line"),
    ],
    ids=["end of file", "empty", "not UTF-8", "NUL", "long"],
)
def test_passwd_refuses_what_is_no_password(
    octets: bytes, expected: str, typed: Typed, tmp_path: Path, capsys: Capture
) -> None:
    typed(octets)
    assert main(["passwd", str(tmp_path / "passwords"), "anna"]) == 1
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "passwords").exists()


@pytest.mark.parametrize(
    "user", ["", "a:b", "a\nb", "a\x7f", " a", "a ", "#a", "\udcff"], ids=ascii
)
def test_passwd_refuses_a_user_name_that_would_break_the_file(
    user: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["passwd", str(tmp_path / "passwords"), user]) == 2
    assert "expected a name without ':'" in capsys.readouterr().err
    assert not (tmp_path / "passwords").exists()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_passwd_changes_nothing_but_a_file(
    kind: str, typed: Typed, tmp_path: Path, capsys: Capture
) -> None:
    """As root it would put a file in the place of /dev/null."""
    path = tmp_path / "passwords"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        try:
            os.mknod(path, stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    before = path.stat()
    for words in ([], ["--remove"]):
        typed(b"secret\n")
        assert main(["passwd", str(path), "anna", *words]) == 1
        assert capsys.readouterr().err == (
            f"minismtp: {path} is no regular file; expected a file of passwords\n"
        )
        assert path.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("there", "added"),
    [("anna", "Anna"), ("Anna@example.org", "anna@EXAMPLE.org."), ("e\u0301", "\u00e9")],
)
def test_passwd_tells_of_a_name_that_is_spelled_in_another_way(
    there: str, added: str, typed: Typed, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "passwords"
    for name in (there, f"#{added}", "bob"):
        typed(b"secret\n")
        assert main(["passwd", str(path), name]) in {0, 2}
    assert "exactly so" not in capsys.readouterr().out
    typed(b"secret\n")
    assert main(["passwd", str(path), added]) == 0
    assert f" {there} is there too, so both have to type their names exactly so.\n" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_escapes_what_its_encoding_lacks(encoding: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minismtp", "passwd", str(tmp_path / "passwords"), "\u0416\u00e9"],
        input=b"secret\n",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {"ascii": "\\u0416\\u00e9", "latin-1": "\\u0416\u00e9", "utf-8": "\u0416\u00e9"}
    assert done.stdout.decode(encoding).startswith(f"{expected[encoding]} was added")


@pytest.mark.parametrize(
    ("file", "expected"),
    [(".", "Is a directory"), ("missing/passwords", "No such file or directory")],
)
def test_passwd_tells_which_file_cannot_be_written(
    file: str, expected: str, typed: Typed, capsys: Capture
) -> None:
    typed(b"secret\n")
    assert main(["passwd", file, "anna"]) == 1
    assert capsys.readouterr().err == f"minismtp: {file}: {expected}\n"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Yield the two ends of a terminal: where a user types, and the program's side."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(
    ("again", "status", "expected"),
    [("secret", 0, ""), ("secert", 1, "minismtp: the two passwords differ\n")],
)
def test_passwd_asks_twice_at_a_terminal(
    again: str, status: int, expected: str, terminal: tuple[int, int], tmp_path: Path
) -> None:
    keyboard, screen = terminal
    path = tmp_path / "passwords"
    # A session of its own has no /dev/tty: getpass asks on standard input and error.
    with subprocess.Popen(
        [sys.executable, "-m", "minismtp", "passwd", str(path), "anna"],
        stdin=screen,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        said = b""
        for prompt, answer in ((b"Password: ", "secret"), (b"The same again: ", again)):
            while not said.endswith(prompt):
                said += process.stderr.read(1)
            os.write(keyboard, answer.encode() + b"\n")
        rest = process.stderr.read().decode()
    assert process.returncode == status
    assert rest.lstrip("\n") == expected
    assert path.exists() is (status == 0)


def test_reader_that_has_seen_enough_is_no_reason_for_a_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "minismtp", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_interrupt_is_quiet(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.StringIO):
        def isatty(self) -> bool:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    assert main(["passwd", "passwords", "anna"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("raised", "status"), [("own", 1), ("the user's", 130)])
def test_interrupt_of_a_user_ends_a_command_and_that_of_a_plugin_does_not(
    raised: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "leaving.py").write_text(
        "import signal\nfrom minismtp import hookimpl, plugin\n\n@plugin\nclass Leaving:\n"
        "    @hookimpl\n    def on_message(self) -> None:\n        "
        + ("raise KeyboardInterrupt\n" if raised == "own" else "signal.raise_signal(2)\n")
    )
    (tmp_path / "mail.eml").write_bytes(b"Subject: x\r\n\r\nx\r\n")
    done = subprocess.run(
        [sys.executable, "-m", "minismtp", "try", "leaving.py", "mail.eml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done
    assert ("451 4.3.0" in done.stdout) == (raised == "own")


def test_serve_without_any_file_says_where_mail_goes_and_how_to_send_some(tmp_path: Path) -> None:
    # It does not matter whether the ports are free, because the text comes before they are opened.
    with subprocess.Popen(
        [sys.executable, "-m", "minismtp", "serve"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(5)]
        process.terminate()
    assert f"{tmp_path / 'state' / 'mail'}" in said[1]
    assert "| curl --url smtp://127.0.0.1:2525 --mail-from me@example.org" in said[4]
    assert "--mail-rcpt me@localhost --upload-file -" in said[4]


def test_passwd_stores_no_scram_keys_when_told_so(typed: Typed, tmp_path: Path) -> None:
    typed(b"secret\n")
    path = tmp_path / "passwords"
    assert main(["passwd", "--no-scram", str(path), "anna"]) == 0
    assert verify_password("secret", users(path)["anna"])


VERSION = f"minismtp {__version__}, Python "


@pytest.mark.parametrize(
    ("newest", "status", "line"),
    [
        (__version__, 0, "no release is newer"),
        ("0.0.1", 0, "no release is newer"),
        ("99.0", 1, "99.0 is available; upgrade in the way in which you installed this one"),
    ],
)
def test_version_says_whether_a_release_is_newer(
    newest: str, status: int, line: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(index: str) -> Version:
        asked.append(index)
        return Version.parse(newest)

    monkeypatch.setattr("minismtp.services.release_index.newest_release", answer)
    assert main(["version", "--check"]) == status
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(VERSION)
    assert second == line
    assert main(["version", "--check", "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found.pop("python")
    assert found == {"version": __version__, "newest": newest, "newer": status == 1}
    assert asked == ["https://pypi.org/simple/"] * 2


def test_version_asks_nobody_by_itself(capsys: Capture) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(VERSION)
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"version", "python"}


def test_version_without_an_answer_is_a_failure_of_its_own(write: Write, capsys: Capture) -> None:
    file = write(f'{SOUND}[updates]\nindex = "https://127.0.0.1:9/simple/"\n')
    assert main(["version", "--check", "--config", file]) == 75
    expected = "minismtp: the newest release is not known: 127.0.0.1:9: Connection refused\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_is_right(name: str, capsys: Capture) -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()
    program, *words = shlex.split(EXAMPLES[name])
    assert (program, words[0]) == ("minismtp", name)
    assert parser(words).parse_args(words).run
    assert main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: {EXAMPLES[name]}" in text
    assert f" {COMMANDS[name][0].upper()}{COMMANDS[name][1:]}. " in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("que list", "argument COMMAND: there is no 'que'; did you mean 'queue'?"),
        ("frobnicate", "argument COMMAND: there is no 'frobnicate'"),
        ("queue lst", "queue: argument verb: there is no 'lst'; did you mean 'list'?"),
        ("certificate x", "certificate: argument verb: there is no 'x'; expected status, renew"),
        ("queue list --sate held", "unrecognized arguments: --sate held; did you mean '--state'?"),
        ("hooks x", "unrecognized arguments: x"),
        ("passwd", "passwd: the following arguments are required: FILE, USER"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_mistyped_command_is_one_line_with_what_may_be_meant(
    words: str, line: str, capsys: Capture
) -> None:
    assert main(words.split()) == 2
    output = capsys.readouterr()
    command, colon, _ = line.partition(": ")
    place = f"{command} " if colon and command in COMMANDS else ""
    assert (output.out, output.err) == ("", f"minismtp: {line}; see `minismtp {place}--help`\n")
