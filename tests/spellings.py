"""How clients write a path, with the replies of Postfix 3.7 and ours."""

from __future__ import annotations

from typing import Final, NamedTuple


class Spelling(NamedTuple):
    """The text after `MAIL FROM:`, and whether Postfix accepts it.

    `reading` is the address in the form of the RFC, or our refusal.
    """

    text: str
    postfix: bool
    reading: str


_LONG: Final = "bounces+1234567-ab12-name=customer.example.com"
_NAME_IN_EXCHANGE: Final = (
    "IMCEAEX-_O=FIRST+20ORGANIZATION_OU=EXCHANGE+20ADMINISTRATIVE+20GROUP+20"
    "+28FYDIBOHF23SPDLT+29_CN=RECIPIENTS_CN=Anna+20Example"
)
_LABEL: Final = "d" * 60

#: Accepted by both.
TAKEN: Final = [
    Spelling("<a@x.org>", True, "a@x.org"),
    Spelling("<A@X.ORG>", True, "A@x.org"),
    Spelling("<>", True, ""),
    # nothing, with other characters around it
    Spelling("< >", True, ""),
    Spelling("<\t>", True, ""),
    Spelling(" <>", True, ""),
    Spelling('<"">', True, ""),
    # no angle brackets
    Spelling("a@x.org", True, "a@x.org"),
    Spelling(" a@x.org", True, "a@x.org"),
    Spelling("a@x.org SIZE=200", True, "a@x.org"),
    Spelling("a@x.org  SIZE=200 BODY=8BITMIME", True, "a@x.org"),
    Spelling("a@x.org\tSIZE=200", True, "a@x.org"),
    Spelling("a@x.org>", True, "a@x.org"),
    Spelling('"a b"@x.org SIZE=200', True, '"a b"@x.org'),
    Spelling("anna..bob.@x.org", True, '"anna..bob."@x.org'),
    Spelling("=a@x.org", True, "=a@x.org"),
    Spelling("@one.org:a@x.org", True, "a@x.org"),
    # a local part alone
    Spelling("raid", True, "raid"),
    Spelling("root SIZE=3", True, "root"),
    Spelling("<root>", True, "root"),
    Spelling("<MAILER-DAEMON>", True, "MAILER-DAEMON"),
    Spelling("<postmaster>", True, "postmaster"),
    Spelling('<"root">', True, "root"),
    Spelling("<.root>", True, '".root"'),
    Spelling("<b.org!a>", True, "b.org!a"),
    Spelling("<a%b.org>", True, "a%b.org"),
    # dots
    Spelling("<anna..bob@x.org>", True, '"anna..bob"@x.org'),
    Spelling("<anna..bob.@x.org>", True, '"anna..bob."@x.org'),
    Spelling("<.anna@x.org>", True, '".anna"@x.org'),
    Spelling("<server01.@x.org>", True, '"server01."@x.org'),
    Spelling("<...@x.org>", True, '"..."@x.org'),
    Spelling("<.@x.org>", True, '"."@x.org'),
    Spelling('<"anna..bob."@x.org>', True, '"anna..bob."@x.org'),
    Spelling("<../../x@x.org>", True, '"../../x"@x.org'),
    # lengths
    Spelling(f"<{_LONG}@em.example.net>", True, f"{_LONG}@em.example.net"),
    Spelling(f"<{_NAME_IN_EXCHANGE}@x.org>", True, f"{_NAME_IN_EXCHANGE}@x.org"),
    Spelling(f"<{'a' * 65}@x.org>", True, f"{'a' * 65}@x.org"),
    Spelling(f"<{'a' * 320}@x.org>", True, f"{'a' * 320}@x.org"),
    Spelling(f"<{'a' * 450}@x.org>", True, f"{'a' * 450}@x.org"),
    Spelling(f"<a@{'.'.join([_LABEL] * 4)}>", True, f"a@{'.'.join([_LABEL] * 4)}"),
    # domains
    Spelling("<a@my_host.x.org>", True, "a@my_host.x.org"),
    Spelling("<a@_x.org>", True, "a@_x.org"),
    Spelling("<a@x_.org>", True, "a@x_.org"),
    Spelling("<a@x.org.>", True, "a@x.org"),
    Spelling("<a@localhost>", True, "a@localhost"),
    Spelling("<a@[192.0.2.1]>", True, "a@[192.0.2.1]"),
    Spelling("<a@[192.0.2.1].>", True, "a@[192.0.2.1]"),
    Spelling("<a@[IPv6:2001:DB8::1]>", True, "a@[ipv6:2001:db8::1]"),
    Spelling("<root@localhost.(none)>", True, "root@localhost"),
    Spelling("<root@host.(none)> SIZE=200", True, "root@host"),
    # blanks
    Spelling("< a@x.org>", True, "a@x.org"),
    Spelling("<a@x.org >", True, "a@x.org"),
    Spelling("<\ta@x.org\t>", True, "a@x.org"),
    Spelling("  <a@x.org>", True, "a@x.org"),
    Spelling("\t<a@x.org>", True, "a@x.org"),
    Spelling("<a @x.org>", True, "a@x.org"),
    Spelling("<a@ x.org>", True, "a@x.org"),
    Spelling("<a@x. org>", True, "a@x.org"),
    Spelling("<a@x.org>\tSIZE=200", True, "a@x.org"),
    Spelling("<a@x.org> \t SIZE=200", True, "a@x.org"),
    # brackets and names
    Spelling("<a@x.org>>", True, "a@x.org"),
    Spelling("<<a@x.org>>", True, "a@x.org"),
    Spelling("<Name <a@x.org>>", True, "a@x.org"),
    Spelling('<"Name" <a@x.org>>', True, "a@x.org"),
    Spelling("<a@x.org (Name)>", True, "a@x.org"),
    Spelling("<a(c)@x.org>", True, "a@x.org"),
    Spelling("<a@x.org;>", True, "a@x.org"),
    Spelling("<a@x.org, >", True, "a@x.org"),
    Spelling("a@x.org; SIZE=200", True, "a@x.org"),
    # routes
    Spelling("<@one.org:a@x.org>", True, "a@x.org"),
    Spelling("<@one.org,@two.org:a@x.org>", True, "a@x.org"),
    # local parts as some hosts write them
    Spelling("<@x.org>", True, '""@x.org'),
    Spelling("<a@b@x.org>", True, '"a@b"@x.org'),
    Spelling("<a@@x.org>", True, '"a@"@x.org'),
    Spelling("<mailto:a@x.org>", True, '"mailto:a"@x.org'),
    Spelling("<one.org:a@x.org>", True, '"one.org:a"@x.org'),
    Spelling("<a%b.org@x.org>", True, "a%b.org@x.org"),
    Spelling("<b.org!a@x.org>", True, "b.org!a@x.org"),
    Spelling("<o'brien@x.org>", True, "o'brien@x.org"),
    Spelling("</O=ORG/CN=A@x.org>", True, "/O=ORG/CN=A@x.org"),
    Spelling("<|cmd@x.org>", True, "|cmd@x.org"),
    # quotes
    Spelling('<"a"@x.org>', True, "a@x.org"),
    Spelling('<a."b".c@x.org>', True, "a.b.c@x.org"),
    Spelling('<"a>b"@x.org>', True, '"a>b"@x.org'),
    Spelling('<"a\\"b"@x.org>', True, '"a\\"b"@x.org'),
    Spelling('<"a@b"@x.org>', True, '"a@b"@x.org'),
    Spelling('<"a b"@x.org>', True, '"a b"@x.org'),
    Spelling('<"a@x.org">', True, "a@x.org"),
    Spelling('"a@x.org"', True, "a@x.org"),
    Spelling("<a\\b@x.org>", True, "ab@x.org"),
    Spelling("<a\\@b@x.org>", True, '"a@b"@x.org'),
    # parameters
    Spelling("<a@x.org> ENVID=a+2bb", True, "a@x.org"),
    Spelling("<a@x.org> ENVID=a=b", True, "a@x.org"),
    Spelling(f"<a@x.org> ENVID={'x' * 300}", True, "a@x.org"),
]
#: Accepted by us only.
MORE: Final = [
    Spelling("<-a@x.org>", False, "-a@x.org"),
    Spelling("<a@192.0.2.1>", False, "a@192.0.2.1"),
    Spelling(f"<a@x.org> BODY={'BINARYMIME'}", False, "a@x.org"),
]
#: Refused by both, with our text.
REFUSED: Final = [
    Spelling("", False, "expected FROM:<address>"),
    Spelling(" ", False, "expected FROM:<address>"),
    Spelling("<@>", False, "no domain behind the @"),
    Spelling("<a@>", False, "no domain behind the @"),
    Spelling("<@one.org,a@x.org>", False, "unexpected , in the local part"),
    Spelling("<a@x.org..>", False, "a domain with two dots in a row, or one before it"),
    Spelling("<a@x..org>", False, "a domain with two dots in a row, or one before it"),
    Spelling("<a@.x.org>", False, "a domain with two dots in a row, or one before it"),
    Spelling("<a@->", False, "a hyphen at an end of a domain label"),
    Spelling("<a@-x.org>", False, "a hyphen at an end of a domain label"),
    Spelling("<a@x-.org>", False, "a hyphen at an end of a domain label"),
    Spelling("<a@[2001:db8::1]>", False, "address literal is not an IP address"),
    Spelling("<a@[300.0.0.1]>", False, "address literal is not an IP address"),
    Spelling("<a@[]>", False, "address literal is not an IP address"),
    Spelling("<a@(none)>", False, "no domain behind the @"),
    Spelling("<a@x org>", False, "a blank in the address"),
    Spelling("<a@x,org>", False, "unexpected , in the domain"),
    Spelling("<a@x/org>", False, "unexpected / in the domain"),
    Spelling("<a@x+y.org>", False, "unexpected + in the domain"),
    Spelling("<a@x:25>", False, "unexpected : in the domain"),
    Spelling("<a@*.org>", False, "unexpected * in the domain"),
    Spelling(f"<a@{'d' * 64}.org>", False, "domain label longer than 63 octets"),
    Spelling(f"<a@{'.'.join([_LABEL] * 5)}>", False, "domain longer than 255 octets"),
    Spelling("<a b@x.org>", False, "a blank in the address"),
    Spelling("<a@x.org b@x.org>", False, "a blank in the address"),
    Spelling("<a@x.org>SIZE=200", False, "expected a blank after the address"),
    Spelling("<a@x.org>garbage", False, "expected a blank after the address"),
    Spelling("<a@x.org> garbage", False, "parameter GARBAGE not recognized"),
    Spelling("<a@x.org>,<b@x.org>", False, "expected a blank after the address"),
    Spelling("<a@x.org><b@x.org>", False, "expected a blank after the address"),
    Spelling("<a@x.org,b@x.org>", False, "unexpected , in the local part"),
    Spelling("<a@x.org;b@x.org>", False, "unexpected ; in the local part"),
    Spelling("a@x.org b@x.org", False, "malformed parameter b@x.org"),
    Spelling("Name <a@x.org>", False, "malformed parameter <a@x.org>"),
    Spelling("<a@x.org", False, "no > behind the address"),
    Spelling("<<a@x.org>", False, "no > behind the address"),
    Spelling("<a@x.org SIZE=200", False, "no > behind the address"),
    Spelling(">a@x.org<", False, "more than one address"),
    Spelling("'a@x.org'", False, "unexpected ' in the domain"),
    Spelling('<a"b@x.org>', False, "a quoted string has no end"),
    Spelling('<"a@x.org>', False, "a quoted string has no end"),
    Spelling("<a,b@x.org>", False, "unexpected , in the local part"),
    Spelling("<a[b]@x.org>", False, "unexpected [ in the local part"),
    Spelling("<a>b@x.org>", False, "expected a blank after the address"),
    Spelling("<a@x.org> ENVID=a+b", False, "malformed xtext"),
    Spelling("<a@x.org> ENVID=+0a", False, "xtext of what is not printable"),
    Spelling("<a@x.org> SIZE=", False, "malformed parameter SIZE="),
    Spelling("<a@x.org> FOO=1", False, "parameter FOO not recognized"),
]
#: Accepted by Postfix, refused by us; docs/conformance.md gives the reason.
DANGEROUS: Final = [
    Spelling("<a\x01b@x.org>", True, "control character in command"),
    Spelling("<a\x1bb@x.org>", True, "control character in command"),
    Spelling("<a\x7fb@x.org>", True, "control character in command"),
    Spelling("<a\x85b@x.org> SMTPUTF8", True, "control character in command"),
    Spelling("<a\u2028b@x.org> SMTPUTF8", True, "control character in command"),
    Spelling("<a@[192.0.2.1>", True, "address literal is not an IP address"),
    Spelling("<a(b@x.org>", True, "a comment has no end"),
    Spelling("<a@x.org> SIZE=1 SIZE=2", True, "parameter SIZE given twice"),
    Spelling("<é@x.org>", True, "address needs SMTPUTF8"),
]
