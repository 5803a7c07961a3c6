"""Results of checks, as in the field of RFC 8601."""

from minismtp import AuthResult
from minismtp.mail.results import quoted


def test_result_is_written_as_resinfo() -> None:
    result = AuthResult("dkim", "fail", 'bad "signature"', {"header.d": "example.org"})
    assert str(result) == r'dkim=fail reason="bad \"signature\"" header.d=example.org'


def test_value_that_is_no_token_is_quoted_and_cannot_break_out() -> None:
    assert quoted("a@b.example") == "a@b.example"
    assert quoted("a b\r\nX: y;") == '"a b??X: y;"'
