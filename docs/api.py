"""The page of what plugins are given, which `build.py` writes from the code.

Attributes and their texts come from the classes; an attribute without a text is an error. The
order of the hooks is that of a session in memory, in which a plugin records each call.
"""

from __future__ import annotations

import ast
import base64
import inspect
import textwrap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import minismtp
import minismtp.hooks.specs
from minismtp import Credentials, Envelope, Local, Recipient, Reply, Session, hookimpl, plugin
from minismtp import events as event_types
from minismtp.hooks.loader import hook_names
from minismtp.mail.session import TlsInfo
from minismtp.testing import Dialogue

EXAMPLES: Final = Path(__file__).parent / "examples" / "api"
_INTRODUCTION: Final = """\
What hooks are given, with all attributes and methods. [hooks.md](hooks.md) says which hook is given
what, and the [guide](plugins.md) how to write a plugin. Read these values; change only what has a
method for it, the stashes, and what the text says. Each class has a whole plugin for an example,
with a test that pytest runs (from `docs/examples/api/`).
`make docs` makes this page from the code."""
_ORDER: Final = """\
All hooks in the order in which one session calls them, with the commands of the client. Hooks of
several plugins run in the order of the configuration. A refusal skips the rest of a step. A client
may send several messages, and leave at any time; `on_disconnect` is called in each case. This
drawing was made by a session whose plugin recorded each call."""
_QUEUE: Final = """\
Another process delivers what was relayed or could not be stored, at any time later, and for each
attempt again. It has its own `on_start` and `on_stop`, and no session:"""
_LATER: Final = (
    ("a mailbox", ("deliver",)),
    ("another server", ("destination", "on_send", "observe DeliveryAttempted")),
)
#: Each heading, with its classes in the order of the page.
CLASSES: Final[dict[str, tuple[type, ...]]] = {
    "Session": (Session, TlsInfo),
    "Envelope": (Envelope, minismtp.RecipientVerdict),
    "Recipient": (Recipient, Local, minismtp.Relay, minismtp.Several),
    "Address": (minismtp.Address,),
    "Message": (minismtp.Message, minismtp.Texts, minismtp.TextPart, minismtp.Link),
    "Headers": (minismtp.Headers,),
    "Delivery": (minismtp.Delivery,),
    "Destination": (minismtp.Destination,),
    "Credentials": (Credentials,),
    "ServerInfo": (minismtp.ServerInfo,),
    "PluginCheck": (minismtp.PluginCheck,),
    "DnsZone": (minismtp.DnsZone, minismtp.DnsRecord),
    "Events": event_types.Event.__args__,
}
#: What the server itself calls.
_INTERNAL: Final = {"ServerInfo.of", "Headers.below", "RecipientVerdict.signed"}
_PIPE: Final = r"\|"
_WIDTH: Final = 34


def page() -> str:
    """Return the page."""
    parts = ["# What plugins are given", _INTRODUCTION, "## The order of the hooks", _ORDER]
    parts += [_block(drawing()), _QUEUE, _block("\n".join(_later()))]
    for heading, classes in CLASSES.items():
        parts.append(f"## {heading}")
        if heading == "Events":
            parts.append(_prose(event_types))
        for cls in classes:
            if len(classes) > 1:
                parts.append(f"### `{cls.__name__}`")
            parts += [each for each in (inspect.getdoc(cls) or "", _attributes(cls)) if each]
            parts += [each for each in (_methods(cls),) if each]
        file = f"api_{heading.lower()}.py"
        parts.append(f"```python {file}\n{(EXAMPLES / file).read_text()}```")
    return "\n\n".join(parts) + "\n"


# The classes


def attributes(cls: type) -> Iterator[tuple[str, str, str]]:
    """Yield each public attribute with its type and its text. Raise LookupError without a text."""
    body = _body(cls)
    for node, behind in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            if name.startswith("_"):
                continue
            text = _string(behind)
            if not text:
                raise LookupError(f"{cls.__name__}.{name} has no text below it")
            yield name, ast.unparse(node.annotation), text
    for name, value in vars(cls).items():
        function: Any = getattr(value, "fget", getattr(value, "func", None))
        if isinstance(value, property | cached_property) and not name.startswith("_"):
            kind = inspect.signature(function).return_annotation
            yield name, str(kind), _first(function.__doc__ or "")


def methods(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the call of each public method, and its text."""
    for node in _body(cls):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        kinds = {each.id for each in node.decorator_list if isinstance(each, ast.Name)}
        if f"{cls.__name__}.{node.name}" in _INTERNAL or kinds & {"property", "cached_property"}:
            continue
        prefix = f"{cls.__name__}." if "classmethod" in kinds else ""
        given = ast.unparse(node.args).partition(", ")[2]  # without self
        result = ast.unparse(node.returns) if node.returns else "None"
        yield f"{prefix}{node.name}({given}) -> {result}", _first(ast.get_docstring(node) or "")


def _attributes(cls: type) -> str:
    rows = [(f"`{name}`", f"`{kind}`", text) for name, kind, text in attributes(cls)]
    return _table(("attribute", "type", "what it is, and when it is there"), rows) if rows else ""


def _methods(cls: type) -> str:
    rows = [(f"`{call}`", text) for call, text in methods(cls)]
    return _table(("method", "what it does"), rows) if rows else ""


def _body(cls: type) -> list[ast.stmt]:
    [node] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    return node.body if isinstance(node, ast.ClassDef) else []


def _string(node: ast.stmt | None) -> str:
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return " ".join(str(node.value.value).split()) if constant else ""  # type: ignore[union-attr]


def _first(text: str) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def _prose(module: object) -> str:
    return (inspect.getdoc(module) or "").partition("\n\n")[2]


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', _PIPE) for c in cells)} |" for cells in lines)


# The order of the hooks


def drawing() -> str:
    """Return a drawing of a session. Raise LookupError if a hook is in no step."""
    steps = list(_steps())
    drawn = {hook.partition(" ")[0] for _, hooks in (*steps, *_LATER) for hook in hooks}
    if missing := {*hook_names()} - drawn:
        raise LookupError(f"no step calls {', '.join(sorted(missing))}")
    lines = []
    for said, hooks in steps:
        for number, hook in enumerate(hooks):
            lines.append(f"{said if not number else '':{_WIDTH}}{hook}")
    return "\n".join(_framed(lines, "the client, or the process", "the server calls"))


def _later() -> Iterator[str]:
    lines = [
        f"{'to ' + where if not number else '':{_WIDTH}}{hook}"
        for where, hooks in _LATER
        for number, hook in enumerate(hooks)
    ]
    yield from _framed(lines, "a copy", "the server calls")


def _framed(lines: list[str], left: str, right: str) -> Iterator[str]:
    yield f"{left:{_WIDTH}}{right}"
    yield f"{'-' * (_WIDTH - 2):{_WIDTH}}{'-' * 30}"
    yield from lines


def _steps() -> Iterator[tuple[str, list[str]]]:
    recorder = _recorder()
    seen: list[str] = recorder.seen
    dialogue = Dialogue(recorder, kind="submission", tls=True)
    begin = seen.index("observe SessionOpened")
    yield "`minismtp dns` runs", ["on_dns"]
    yield "the process starts", [*seen[:begin], "on_check"]
    yield "connects", seen[begin:]
    secret = base64.b64encode(b"\0alice\0secret").decode()
    first = base64.b64encode(b"n,,n=alice,r=nonce").decode()
    for shown, *lines in (
        ("EHLO client.example", "EHLO client.example"),
        ("AUTH SCRAM-SHA-256", f"AUTH SCRAM-SHA-256 {first}", "*"),
        ("AUTH PLAIN", f"AUTH PLAIN {secret}"),
        ("VRFY alice", "VRFY alice"),
        ("MAIL FROM:<alice@example.org>", "MAIL FROM:<alice@example.org>"),
        ("RCPT TO:<bob@example.org>", "RCPT TO:<bob@example.org>"),
        ("DATA", "DATA"),
        ("the content, and a final dot", "Subject: x", "", "y", "."),
    ):
        seen.clear()
        for line in lines:
            dialogue.send(line)
        yield shown, [*seen]
    seen.clear()
    dialogue.send("QUIT")
    dialogue.close()
    stop = seen.index("on_stop")
    yield "QUIT, or the connection is lost", seen[:stop]
    yield "the process ends", seen[stop:]


def _recorder() -> Any:  # noqa: ANN401 - its class is made here
    """Return a plugin with all hooks, which answers so that the session goes on."""
    answers = {"route": Local(), "deliver": True, "authenticate": "alice"}
    answers["command"] = Reply(252, "send some mail, it will be tried", "2.0.0")
    seen: list[str] = []

    def method(name: str, arguments: str) -> Any:  # noqa: ANN401 - any callable
        def called(*given: object) -> object:
            seen.append(f"observe {type(given[1]).__name__}" if name == "observe" else name)
            return answers.get(name)

        source = f"def {name}(self{arguments}): return called(self{arguments})"
        namespace: dict[str, Any] = {"called": called}
        exec(source, namespace)  # noqa: S102 - pluggy looks at the names of arguments
        return hookimpl(namespace[name])

    members: dict[str, Any] = {"seen": seen}
    for name in hook_names():
        parameters = inspect.signature(getattr(minismtp.hooks.specs, name)).parameters
        members[name] = method(name, "".join(f", {each}" for each in parameters))
    made: Any = plugin(type("Recorder", (), members))
    return made()
