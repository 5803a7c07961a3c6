"""Write the pages that come from the code: `make docs`, or `python docs/build.py`.

The configuration reference is made from the dataclasses of the configuration and of the shipped
plugins, the hook reference from the specs, the page of what plugins are given from the classes
(`api.py`), the manual of the command from its parser.
"""

from __future__ import annotations

import argparse
import inspect
import re
import runpy
import textwrap
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from minismtp import __version__
from minismtp.cli.arguments import EXAMPLES
from minismtp.cli.main import parser
from minismtp.config import Config
from minismtp.config.schema import Option, options, summary, tables
from minismtp.hooks import specs
from minismtp.hooks.loader import available, hook_names

DOCS: Final = Path(__file__).parent
_SHIPPED: Final = sorted(path.stem for path in (DOCS.parent / "plugins").glob("[!_]*.py"))
# Where the default depends on the machine.
_DEFAULTS: Final = {
    "hostname": "the machine's name",
    "state_directory": "`$STATE_DIRECTORY`, else `./minismtp-state`",
}
_CONFIGURATION: Final = """\
One TOML file: `--config FILE`, else `$MINISMTP_CONFIG`, else `/etc/minismtp/minismtp.toml`, else a
harmless default for trying it out (127.0.0.1:2525, local mail only, two workers). `minismtp check`
tells what is wrong with a file, with the line, what was expected and what to do; `minismtp schema`
prints a JSON Schema of it, so that editors complete and check it. An unknown key is an error."""
_MADE: Final = "`make docs` makes this page from the code."
_EXAMPLES: Final = """\
Each hook has a whole plugin for an example, with a test that pytest runs (from `docs/examples/`);
the [guide](plugins.md#tests) says what `dialogue` and `mailroom` are."""
_INDEX: Final = """\
Each is one small file in `plugins/`, and an example for the next author ([guide](../plugins.md)).
Every option is in [configuration.md](../configuration.md); here is what each is for, what it needs,
and what happens when that is away. `minismtp try NAME mail.eml --set KEY=VALUE` shows one at
work."""
# By the first of these hooks that a plugin has.
_KINDS: Final = {
    "authenticate": "Logins",
    "deliver": "Storage and delivery",
    "route": "Recipients",
    "on_send": "Mail that leaves",
    "": "Filters",
}
_PIPE: Final = r"\|"
_NONE: Final = 'Default *none* means that the key is not set; `""` says the same.'
_TYPES: Final = {
    "path": "text; relative to the configuration file",
    "size": 'octets as a number, or text with B, kB, MB, GB, KiB, MiB or GiB: `"25MiB"`',
    "duration": 'text with ms, s, m, h and d: `"30s"`, `"1h30m"`',
    "rate": 'text, a number or size in a duration: `"100/1h"`, `"2GiB/1d"`',
    "network": 'text: `"192.0.2.0/24"`, `"2001:db8::/32"` or a single address',
    "host:port": 'text: `"192.0.2.1:25"`, `"[2001:db8::1]:25"`; to listen on all addresses of IPv4'
    ' and IPv6 `"*:25"`; where it says so, `"unix:/run/minismtp/smtp.sock"`',
}
_DATE: Final = "2026-11-25"  # when the wording was last gone through
_DESCRIPTION: Final = """\
minismtp receives mail, takes submissions from users, stores in Maildirs, and relays to other
servers from a durable queue. Plugins filter, authenticate, route and store. `minismtp serve` is the
server, which a systemd unit usually starts; the other commands look after it."""
_MANUAL: Final = {
    "FILES": {
        "/etc/minismtp/minismtp.toml": "The configuration; see minismtp.toml(5).",
        "/var/lib/minismtp": "The state directory under systemd: queue, Maildirs, databases.",
    },
    "ENVIRONMENT": {
        "MINISMTP_CONFIG": "The configuration file when `--config` is not given.",
        "STATE_DIRECTORY": "The state directory when the file names none; systemd sets it.",
    },
    "SIGNALS": {
        "TERM, INT": "End: accept no more, let sessions end within `drain`; a second one ends all"
        " at once.",
        "HUP": "Reload configuration, plugins and certificates. When the new ones are wrong, the"
        " old ones go on.",
        "USR2": "Print the stack of every thread on standard error.",
    },
    "EXIT STATUS": {
        "0": "Done.",
        "1": "Failure, such as an address that is in use.",
        "2": "Wrong usage.",
        "75": "No answer: `dns --check` got none from the DNS and found nothing wrong otherwise, or"
        " `version --check` got none from the package index.",
        "78": "A mistake in the configuration.",
        "130": "Interrupted by Ctrl-C.",
    },
}


class Section(NamedTuple):
    """A table of the configuration, or the options of a plugin."""

    title: str
    text: str
    rows: list[Option]


def pages() -> dict[Path, str]:
    """Return every page that is made, by its path."""
    return {
        DOCS / "configuration.md": configuration(),
        DOCS / "hooks.md": hooks(),
        DOCS / "api.md": runpy.run_path(str(DOCS / "api.py"))["page"](),
        DOCS / "plugins" / "README.md": plugins(),
        DOCS / "man" / "minismtp.8": manual(),
        DOCS / "man" / "minismtp.toml.5": manual_of_configuration(),
    }


# Markdown


def sections() -> Iterator[Section]:
    """Yield all of the configuration: tables first, then shipped plugins."""
    yield Section("Top level", "These keys stand above the first table of the file.", _keys(Config))
    for name, cls in tables():
        yield Section(f"`{name}`", inspect.getdoc(cls) or "", _keys(cls))
    for plugin, factory in shipped().items():
        yield Section(f"Plugin `{plugin}`", inspect.getdoc(factory) or "", _keys(factory))
        for name, cls in tables(factory, "plugins."):
            yield Section(f"`{name}` of `{plugin}`", inspect.getdoc(cls) or "", _keys(cls))


def shipped() -> dict[str, type]:
    """Return the classes of the shipped plugins by name. Raise ModuleNotFoundError."""
    found = {each.name: each for each in available([])}
    factories = {}
    for plugin in _SHIPPED:
        factory = found[plugin].factory if plugin in found else None
        if factory is None:
            problem = found[plugin].problem if plugin in found else "install the project again"
            raise ModuleNotFoundError(f"{plugin} cannot be described: {problem}")
        factories[plugin] = factory
    return factories


def _keys(cls: type) -> list[Option]:
    return [option for option in options(cls) if not option.kind.endswith("table")]


def configuration() -> str:
    """Return the configuration reference."""
    parts = [
        "# Configuration",
        f"{_CONFIGURATION}\n{_MADE}",
        _table(("type", "how it is written"), _TYPES.items()),
        _NONE,
    ]
    for section in sections():
        parts += [f"## {section.title}", section.text]
        if section.rows:
            parts.append(_options(section.rows))
    return "\n\n".join(parts) + "\n"


def _options(rows: list[Option]) -> str:
    head = ["key", "type", "default", "meaning"]
    cells = [[f"`{row.name}`", row.kind, _default(row), row.meaning] for row in rows]
    if not any(row.meaning for row in rows):  # a plugin tells it in its text
        head, cells = head[:3], [row[:3] for row in cells]
    return _table(head, cells)


def _default(row: Option) -> str:
    if row.name in _DEFAULTS:
        return _DEFAULTS[row.name]
    if row.default is None:
        return "required"
    return "none" if row.default == "none" else f"`{row.default}`"


def _table(head: Collection[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(map(_row, [head, ["---"] * len(head), *rows]))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', _PIPE) for cell in cells)} |".replace("|  |", "| |")


def hooks() -> str:
    """Return the hook reference."""
    names = hook_names()
    overview = ((f"[`{name}`](#{name})", _doc(name).partition("\n")[0]) for name in names)
    parts = [
        "# Hooks",
        f"{_prose(specs)}\n\n{_EXAMPLES}\n{_MADE}",
        _table(("hook", "what for"), overview),
    ]
    for name in names:
        signature = inspect.signature(getattr(specs, name))
        arguments = [f"{each.name}: {each.annotation}" for each in signature.parameters.values()]
        code = f"def {name}({', '.join(['self', *arguments])}) -> {signature.return_annotation}"
        example = (DOCS / "examples" / f"{name}.py").read_text()
        parts += [f"## {name}", f"```python\n{code}\n```", _doc(name)]
        parts.append(f"```python {name}.py\n{example}```")
    return "\n\n".join(parts) + "\n"


def plugins() -> str:
    """Return the index of the shipped plugins, by what they do."""
    parts = ["# Plugins that minismtp ships", f"{_INDEX}\n{_MADE}"]
    rest = shipped()
    for hook, title in _KINDS.items():
        kind = {name: cls for name, cls in rest.items() if not hook or hasattr(cls, hook)}
        rest = {name: cls for name, cls in rest.items() if name not in kind}
        rows = ((f"[`{name}`]({name}.md)", summary(cls)) for name, cls in kind.items())
        parts += [f"## {title}", _table(("plugin", "what it does"), rows)]
    return "\n\n".join(parts) + "\n"


def _doc(hook: str) -> str:
    return inspect.getdoc(getattr(specs, hook)) or ""


def _prose(module: object) -> str:
    """Return a module's docstring without its first line."""
    return (inspect.getdoc(module) or "").partition("\n\n")[2]


# Manual pages, in the macros of man(7)


def manual() -> str:
    """Return minismtp(8)."""
    lines = [
        _head("MINISMTP", "8", "System administration"),
        ".SH NAME",
        r"minismtp \- an SMTP server that is programmed in plain Python",
        ".SH SYNOPSIS",
        ".B minismtp",
        ".I COMMAND",
        r"[\fIoptions\fR]",
        ".SH DESCRIPTION",
        *_roff(_DESCRIPTION),
        ".SH COMMANDS",
    ]
    for name, command in _commands(parser()).items():
        lines += [f".SS minismtp {_escaped(name)}", *_roff(command.description or "")]
        lines += _arguments(command)
        lines += [".PP", "Example:", _bold(EXAMPLES[name])]
    for heading, items in _MANUAL.items():
        lines.append(f".SH {heading}")
        for term, text in items.items():
            lines += [".TP", _bold(term), *_roff(text)]
    lines += [".SH SEE ALSO", ".BR minismtp.toml (5),", ".BR systemctl (1),", ".BR journalctl (1)"]
    return "\n".join(lines) + "\n"


def manual_of_configuration() -> str:
    """Return minismtp.toml(5)."""
    lines = [
        _head("MINISMTP.TOML", "5", "File formats"),
        ".SH NAME",
        r"minismtp.toml \- the configuration of minismtp",
        ".SH DESCRIPTION",
        *_roff(_CONFIGURATION),
    ]
    for kind, text in _TYPES.items():
        lines += [".TP", _bold(kind), *_roff(text)]
    for section in sections():
        lines += [f".SH {_escaped(section.title.replace('`', ''))}", *_paragraphs(section.text)]
        for row in section.rows:
            default = "" if row.default is None else "default "
            lines += [".TP", _bold(row.name)]
            lines += _roff(f"{row.kind}; {default}{_default(row)}.")
            lines += [".br", *_roff(row.meaning)] if row.meaning else []
    lines += [".SH SEE ALSO", ".BR minismtp (8)"]
    return "\n".join(lines) + "\n"


def _head(name: str, section: str, volume: str) -> str:
    return f'.TH {name} {section} {_DATE} "minismtp {__version__}" "{volume}"'


def _commands(whole: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    # argparse has no other way to its parts.
    [found] = [each for each in whole._actions if isinstance(each, argparse._SubParsersAction)]  # noqa: SLF001
    return dict(found.choices)


def _arguments(command: argparse.ArgumentParser) -> Iterator[str]:
    for action in command._actions:  # noqa: SLF001
        if action.dest != "help":
            yield from (".TP", _label(action), *_roff(action.help or ""))


def _label(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None:
        metavar = "|".join(map(str, action.choices))
    names = _bold(", ".join(action.option_strings)) if action.option_strings else ""
    value = "" if action.nargs == 0 else rf"\fI{_escaped(metavar)}\fR"
    return f"{names} {value}".strip()


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        yield from [".PP"] if number else []
        yield from _roff(paragraph)


def _roff(text: str) -> list[str]:
    """Write Markdown's `code` bold and *words* italic; no line is taken for a request."""
    text = re.sub(r"\[([^\]\[]*)\]\([^)\s]+\)", r"\1", " ".join(text.split()))
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _escaped(text))
    text = re.sub(r"(?<!\w)\*(\w+)\*(?!\w)", r"\\fI\1\\fR", text)
    lines = textwrap.wrap(text, 78, break_long_words=False, break_on_hyphens=False)
    return [rf"\&{line}" if line.startswith((".", "'")) else line for line in lines]


def _bold(text: str) -> str:
    return rf"\fB{_escaped(text)}\fR"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-")


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
