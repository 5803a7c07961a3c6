"""The files of a Postfix configuration are read as Postfix reads them; postconf is the judge."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minismtp.cli.postfix_files.directory import PostfixDirectory
from minismtp.cli.postfix_files.lookup_table import open_table
from minismtp.cli.postfix_files.main_cf import DEFAULTS, MainCf, is_known
from minismtp.cli.postfix_files.master_cf import read_services
from minismtp.cli.postfix_files.text import PostfixError, logical_lines, words

#: Parameters of text that postconf prints whatever it is; the last ones are never set.
CARRIERS: Final = ("relayhost", "content_filter", "mydestination", "virtual_transport", "myorigin")
UNSET: Final = ("fallback_relay", "no_such_name")


def empty(path: Path = Path("/nonexistent")) -> PostfixDirectory:
    """Return a directory without settings."""
    return PostfixDirectory(path, MainCf({}), [])


@pytest.fixture(scope="module")
def postconf(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> Callable[[str], dict[str, str] | None]:
    """Return a function that lets postconf read a main.cf; None means that it refuses."""
    program = require_program("postconf")
    directory = tmp_path_factory.mktemp("postconf")
    (directory / "master.cf").write_text("smtp inet n - y - - smtpd\n")

    def read(text: str) -> dict[str, str] | None:
        (directory / "main.cf").write_text(text)
        command = [program, "-c", str(directory), "-x", *CARRIERS]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode != 0 or "fatal:" in found.stderr:
            return None
        pairs = (line.partition(" =") for line in found.stdout.splitlines())
        return {name: " ".join(value.split()) for name, _, value in pairs}

    return read


def ours(text: str) -> dict[str, str] | None:
    """Return what our reader makes of a main.cf; None means that it refuses."""
    try:
        main = MainCf.of(text, "main.cf")
        return {name: " ".join(main.value(name).split()) for name in CARRIERS}
    except PostfixError:
        return None


_operand: st.SearchStrategy[str] = st.deferred(lambda: st.lists(_piece, max_size=3).map("".join))
_name = st.sampled_from([*CARRIERS, *UNSET, "mail_name"])
_piece: st.SearchStrategy[str] = st.one_of(
    st.text("ab1.:, ", max_size=5),
    _name.map(lambda name: f"${name}"),
    _name.map(lambda name: f"${{{name}}}"),
    _name.map(lambda name: f"$({name})"),
    st.builds("${{{} ? {{{}}} : {{{}}}}}".format, _name, _operand, _operand),
    st.builds("${{{}?{}}}".format, _name, st.text("ab1. ", max_size=4)),
    st.builds("${{{}:{}}}".format, _name, st.text("ab1. ", max_size=4)),
    st.builds(
        "${{{{{}}} {} {{{}}}?{{{}}}:{{{}}}}}".format,
        st.sampled_from(["a", "10", "$mail_name", "$content_filter"]),
        st.sampled_from(["==", "!=", "<", ">=", "<level", ">level"]),
        st.sampled_from(["a", "9", "Postfix", "3.10"]),
        _operand,
        _operand,
    ),
    st.sampled_from(["$$", "{", "}", "${", "$", "#"]),
)
_comment = st.sampled_from(["", "# a comment\n", "  # inside\n", "\n", "   \n"])
_setting = st.builds(
    "{}{} {}={}{}{}\n{}".format,
    st.just(""),
    st.sampled_from(CARRIERS),
    st.sampled_from(["", " "]),
    st.sampled_from(["", " ", "\t"]),
    _operand,
    st.lists(_operand, max_size=2).map(lambda parts: "".join(f"\n  {part}" for part in parts)),
    _comment,
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=20, deadline=None)
@given(text=st.lists(_setting, max_size=5).map("".join))
def test_values_are_those_of_postconf(
    postconf: Callable[[str], dict[str, str] | None], text: str
) -> None:
    theirs = postconf("compatibility_level = 3.6\nmyhostname = mx.example.org\n" + text)
    found = ours("compatibility_level = 3.6\nmyhostname = mx.example.org\n" + text)
    if theirs is not None and found is not None:
        assert found == theirs


@pytest.mark.parametrize(
    "text",
    [
        "relayhost = a\n  b\n# comment\n  c\n\n  d\ncontent_filter = e\n",
        "relayhost = first\nrelayhost = second\n",
        "relayhost =\ncontent_filter = ${relayhost:none} ${relayhost?some}\n",
        "relayhost=x\ncontent_filter = ${relayhost?{ a b }:{ c }}.${no_such_name ? {a} : {b}}\n",
        "content_filter = ${{$mail_name} == {Postfix} ? {yes} : {no}} ${{10} > {9} ? {n} : {s}}\n",
        "content_filter = ${{$compatibility_level} >=level {3.10} ? {new} : {old}}\n",
        "content_filter = $$x $(mail_name) ${mail_name?a:b}\n",
        "relayhost = $content_filter\ncontent_filter = $myorigin\nmyorigin = end\n",
        "  relayhost = a line that continues nothing\ncontent_filter = x\n",
        "relayhost = a # no comment\r\n",
        "relayhost = \n",
    ],
)
def test_examples_are_read_as_postconf_does(
    postconf: Callable[[str], dict[str, str] | None], text: str
) -> None:
    text = "compatibility_level = 3.6\nmyhostname = mx.example.org\n" + text
    theirs = postconf(text)
    assert theirs is not None
    assert ours(text) == theirs


def test_defaults_are_those_of_postfix(
    tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    program = require_program("postconf")
    lines = ["compatibility_level = 3.6", "myhostname = mx.example.org", "mynetworks = 192.0.2.1"]
    (tmp_path / "main.cf").write_text("\n".join(lines))
    (tmp_path / "master.cf").write_text("")
    command = [program, "-c", str(tmp_path), "-x"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = dict(line.split(" =", 1) for line in found.splitlines())
    main = MainCf.read(tmp_path / "main.cf")
    assert not [name for name in theirs if not is_known(name)]
    ours = {name: main.value(name) for name in theirs.keys() & DEFAULTS.keys()}
    differ = {
        name: (value, theirs[name])
        for name, value in ours.items()
        if " ".join(value.split()) != " ".join(theirs[name].split())
    }
    assert differ == {}


def test_comments_and_empty_lines_are_left_out_of_logical_lines() -> None:
    text = "#c\n a = dropped\n\nb = 1\n # c\n\n\t2\n#c\nc = 3"
    assert [tuple(line) for line in logical_lines(text)] == [(4, "b = 1\t2"), (9, "c = 3")]


def test_words_are_separated_by_commas_and_blanks_outside_of_braces() -> None:
    assert words("a,b  {c, {d} e},f # g h") == ["a", "b", "{c, {d} e}", "f"]


def test_services_have_their_own_parameters() -> None:
    text = (
        "smtp inet n - y - - smtpd\n"
        "submission inet n - y - 10 /usr/lib/postfix/smtpd\n"
        "  -o syslog_name=postfix/submission -v -oa=b\n"
        "  -o { smtpd_client_restrictions = permit_sasl_authenticated, reject }\n"
        "mail unix - n n - - pipe flags=R user=vmail argv=/bin/cat {a b}\n"
        "broken inet n\n"
    )
    services, problems = read_services(text, "master.cf")
    assert [service.label for service in services] == ["smtp/inet", "submission/inet", "mail/unix"]
    options = {name: setting.value for name, setting in services[1].options.items()}
    assert options == {
        "syslog_name": "postfix/submission",
        "a": "b",
        "smtpd_client_restrictions": "permit_sasl_authenticated, reject",
    }
    assert services[1].command == "smtpd"
    assert services[2].arguments == ("flags=R", "user=vmail", "argv=/bin/cat", "a b")
    text = "expected 8 fields, such as `smtp inet n - y - - smtpd`; the service is left out"
    assert problems == [("master.cf:6", text)]


def test_lists_have_the_lines_of_files(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(f"a b\n# c\n{tmp_path}/two\n")
    (tmp_path / "two").write_text("!d\ne\n")
    found = empty(tmp_path).items(f"x !{tmp_path}/one, y")
    assert list(found) == ["x", "!a", "!b", "d", "!e", "y"]


def test_files_that_contain_each_other_have_an_end(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(f"{tmp_path}/two {tmp_path}/two\n")
    (tmp_path / "two").write_text(f"{tmp_path}/one\n")
    with pytest.raises(PostfixError, match="contains itself"):
        list(empty(tmp_path).items(f"{tmp_path}/one"))
    for number in range(10):
        inside = f"{tmp_path}/deep{number + 1} " * 10
        (tmp_path / f"deep{number}").write_text(inside)
    (tmp_path / "deep10").write_text("")
    with pytest.raises(PostfixError, match="too many files"):
        list(empty(tmp_path).items(f"{tmp_path}/deep0"))


def test_files_of_a_copy_are_found_in_the_copy(tmp_path: Path) -> None:
    copy = empty(tmp_path / "etc" / "postfix")
    assert copy.locate("/etc/postfix/virtual") == tmp_path / "etc" / "postfix" / "virtual"
    assert copy.locate("/etc/aliases") == tmp_path / "etc" / "aliases"
    (tmp_path / "aliases").write_text("")
    assert empty(tmp_path).locate("/etc/mail/aliases") == tmp_path / "aliases"


def test_tables_are_read_from_their_text(tmp_path: Path) -> None:
    text = '# c\nkey  a value\n\n"q r"@b\tone, \n  two\nlonely\n'
    (tmp_path / "map").write_text(text)
    table = open_table(f"proxy:hash:{tmp_path}/map", empty(tmp_path), "")
    assert [(pair.key, pair.value) for pair in table.pairs] == [
        ("key", "a value"),
        ('"q r"@b', "one,   two"),
    ]
    assert [problem.place for problem in table.problems] == [f"{tmp_path}/map:6"]
    assert table.is_listed


def test_aliases_have_a_colon(tmp_path: Path) -> None:
    (tmp_path / "aliases").write_text('root: alice,\n bob\n"a b" : c\nnothing\n')
    table = open_table(f"hash:{tmp_path}/aliases", empty(tmp_path), "", aliases=True)
    assert [(pair.key, pair.value) for pair in table.pairs] == [
        ("root", "alice, bob"),
        ('"a b"', "c"),
    ]


def test_patterns_keep_their_flags_and_conditions(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("/^a\\/b/i x y\n!/c/ z\nif /d/\n/e/ f\nendif\n|g| h\nbad\n")
    table = open_table(f"pcre:{tmp_path}/p", empty(tmp_path), "")
    found = [(each.expression, each.flags, each.value, each.is_simple) for each in table.patterns]
    assert found == [
        (r"^a\/b", "i", "x y", True),
        ("c", "", "z", False),
        ("e", "", "f", False),
        ("g", "", "h", True),
    ]


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("nis:aliases", "tables of type nis have no list"),
        ("/etc/aliases", "it has no type, such as hash:"),
        ("hash:relative", "'relative' is no absolute path"),
        ("hash:/nonexistent/x", "/nonexistent/x: No such file or directory"),
        ("inline:{ x }", "expected `name = value`"),
    ],
)
def test_table_that_cannot_be_listed_says_why(name: str, trouble: str) -> None:
    assert open_table(name, empty(), "").trouble == trouble


def test_constant_and_database_are_no_lists(tmp_path: Path) -> None:
    assert open_table("static:{ all of it }", empty(), "").constant == "all of it"
    (tmp_path / "db").write_text("user = x\nnonsense\nquery = SELECT 1\n")
    table = open_table(f"mysql:{tmp_path}/db", empty(tmp_path), "")
    assert dict(table.outside) == {"user": "x", "query": "SELECT 1"}
    assert not table.is_listed
