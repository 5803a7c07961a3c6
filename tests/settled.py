"""Messages whose header has to be completed, and the results of Postfix."""

from __future__ import annotations

from typing import Final

LONG_NAME: Final = b"X" * 2047

# The input, and what Postfix 3.7.11 stored below its own fields, with CRLF instead of LF.
POSTFIX: Final[dict[str, tuple[bytes, bytes]]] = {
    "text": (b"text only\r\nline 2\r\n", b"\r\ntext only\r\nline 2\r\n"),
    "text-behind-a-field": (
        b"Subject: x\r\nthis is body\r\nmore: body\r\n",
        b"Subject: x\r\n\r\nthis is body\r\nmore: body\r\n",
    ),
    "blank-before-colon": (b"Subject :x\r\n\r\nb\r\n", b"Subject:x\r\n\r\nb\r\n"),
    "blanks-before-colon": (
        b"Subject \t : x\r\nTo: a@b\r\n\r\nb\r\n",
        b"Subject: x\r\nTo: a@b\r\n\r\nb\r\n",
    ),
    "leading-blank": (
        b" leading\r\nSubject: x\r\n\r\nb\r\n",
        b"\r\n leading\r\nSubject: x\r\n\r\nb\r\n",
    ),
    "leading-tab": (b"\tTab: x\r\n\r\nb\r\n", b"\r\n\tTab: x\r\n\r\nb\r\n"),
    "first-line-of-blanks": (
        b"   \r\nSubject: a\r\n\r\nb\r\n",
        b"\r\n   \r\nSubject: a\r\n\r\nb\r\n",
    ),
    "empty-first-line": (b"\r\ntext\r\n", b"\r\ntext\r\n"),
    "only-fields": (b"Subject: only\r\n", b"Subject: only\r\n"),
    "nothing": (b"", b""),
    "line-of-an-mbox": (
        b"From a@b Thu Jan 1 00:00:00 1970\r\nSubject: x\r\n\r\nb\r\n",
        b"X-Mailbox-Line: From a@b Thu Jan 1 00:00:00 1970\r\nSubject: x\r\n\r\nb\r\n",
    ),
    "lines-of-an-mbox": (
        b">From a@b Thu Jan 1\r\n>>From again\r\nSubject: x\r\n\r\nb\r\n",
        (
            b"X-Mailbox-Line: >From a@b Thu Jan 1\r\nX-Mailbox-Line: >>From again\r\n"
            b"Subject: x\r\n\r\nb\r\n"
        ),
    ),
    "folded-line-of-an-mbox": (
        b"From a@b Thu\r\n folded\r\nSubject: x\r\n\r\nb\r\n",
        b"X-Mailbox-Line: From a@b Thu\r\n\r\n folded\r\nSubject: x\r\n\r\nb\r\n",
    ),
    "line-of-an-mbox-alone": (b"From a@b\r\n", b"X-Mailbox-Line: From a@b\r\n"),
    "line-of-an-mbox-and-text": (
        b"From a@b\r\ntext\r\n",
        b"X-Mailbox-Line: From a@b\r\n\r\ntext\r\n",
    ),
    "line-of-an-mbox-with-a-colon": (
        b"From :a@b.c\r\nDate : x\r\n\r\nb\r\n",
        b"X-Mailbox-Line: From :a@b.c\r\nDate: x\r\n\r\nb\r\n",
    ),
    "line-of-an-mbox-later": (
        b"Subject: x\r\nFrom a@b Thu\r\nTo: y@z\r\n\r\nb\r\n",
        b"Subject: x\r\n\r\nFrom a@b Thu\r\nTo: y@z\r\n\r\nb\r\n",
    ),
    "no-line-of-an-mbox": (
        b"from a@b lower\r\nSubject: x\r\n\r\nb\r\n",
        b"\r\nfrom a@b lower\r\nSubject: x\r\n\r\nb\r\n",
    ),
    "quoted-by-a-blank": (b"> From a\r\n\r\nb\r\n", b"\r\n> From a\r\n\r\nb\r\n"),
    "odd-names": (b"X/y.z!#$: ok\r\n~: tilde\r\n\r\nb\r\n",) * 2,
    "8-bit-name": (b"B\xc3\xa4d: x\r\n\r\nb\r\n", b"\r\nB\xc3\xa4d: x\r\n\r\nb\r\n"),
    "two-words": (b"Two words: x\r\n\r\nb\r\n", b"\r\nTwo words: x\r\n\r\nb\r\n"),
    "no-name": (b": x\r\nSubject: y\r\n\r\nb\r\n", b"\r\n: x\r\nSubject: y\r\n\r\nb\r\n"),
    "folded-blanks": (b"Subject: y\r\n \r\n still\r\nTo: a@b\r\n\r\nb\r\n",) * 2,
    "blanks-end-no-header": (b"Subject: y\r\n\t\r\nTo: a@b\r\n\r\nb\r\n",) * 2,
    "blanks-and-text": (b"Subject: y\r\n  \r\nb\r\n", b"Subject: y\r\n  \r\n\r\nb\r\n"),
    "nul-in-name": (b"N\0ul: y\r\n\r\nb\r\n", b"\r\nN\0ul: y\r\n\r\nb\r\n"),
    "delete-in-name": (
        b"Subject: y\r\nDel\x7f: a\r\n\r\nb\r\n",
        b"Subject: y\r\n\r\nDel\x7f: a\r\n\r\nb\r\n",
    ),
    "boundary": (
        b"--b\r\nContent-Type: a/b\r\n\r\nb\r\n",
        b"\r\n--b\r\nContent-Type: a/b\r\n\r\nb\r\n",
    ),
    "url": (b"http://example.org/x\r\n\r\n",) * 2,
    "greeting": (b"Hello Bob:\r\nhow are you\r\n", b"\r\nHello Bob:\r\nhow are you\r\n"),
    "text-like-a-field": (b"Re: hello\r\nhow are you\r\n", b"Re: hello\r\n\r\nhow are you\r\n"),
    "no-value": (b"Subject:\r\n\r\nb\r\n",) * 2,
    "longest-name": (LONG_NAME + b": v\r\n\r\nb\r\n",) * 2,
    "too-long-a-name": (
        b"X" + LONG_NAME + b": v\r\n\r\nb\r\n",
        b"\r\nX" + LONG_NAME + b": v\r\n\r\nb\r\n",
    ),
    "paragraphs": (
        b"Subject: x\r\nplain\r\n\r\nSecond: paragraph\r\n",
        b"Subject: x\r\n\r\nplain\r\n\r\nSecond: paragraph\r\n",
    ),
    "return-paths": (
        (
            b"Return-Path: <a@b>\r\nSubject: x\r\nreturn-path:\r\n <folded@b>\r\n"
            b"RETURN-PATH \t: <z@z>\r\n\r\nReturn-Path: body\r\n"
        ),
        b"Subject: x\r\n\r\nReturn-Path: body\r\n",
    ),
    "only-a-return-path": (b"Return-Path: <a@b>\r\n", b""),
    "mark-of-a-text": (b"\xef\xbb\xbf\r\nb\r\n", b"\r\n\xef\xbb\xbf\r\nb\r\n"),
}
# Where we accept more than Postfix, which shows the whole header as text.
KINDER: Final[dict[str, tuple[bytes, bytes]]] = {
    "mark": (b"\xef\xbb\xbfSubject: y\r\n\r\nb\r\n", b"Subject: y\r\n\r\nb\r\n"),
    "mark-and-mbox": (
        b"\xef\xbb\xbfFrom a@b\r\nSubject: y\r\n\r\nb\r\n",
        b"X-Mailbox-Line: From a@b\r\nSubject: y\r\n\r\nb\r\n",
    ),
}
