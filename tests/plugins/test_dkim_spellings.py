"""Signatures and keys as real senders write them, compared with dkimpy."""

from __future__ import annotations

import hashlib
import io
import re
import time
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Final, cast

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from minismtp_plugins._canonical import body_hash, relaxed_field
from minismtp_plugins._signing import signature_of
from test_plugin_dkim_sign import SHORT
from test_plugin_dkim_verify import ED25519, MESSAGE, OTHER, RSA, verify
from zones import published

NOW: Final = int(time.time())
WEAK: Final = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is what it is for
TOO_WEAK: Final = cast("rsa.RSAPrivateKey", load_pem_private_key(SHORT, None))


def octets(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, form: PublicFormat) -> str:
    return b64encode(key.public_key().public_bytes(Encoding.DER, form)).decode()


SPKI: Final = octets(RSA, PublicFormat.SubjectPublicKeyInfo)
WRAPPED: Final = " ".join(SPKI[start : start + 40] for start in range(0, len(SPKI), 40))
PLAIN: Final = (
    "v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=rsa;\r\n\th=from:subject; bh=BH; b=B"
)


@dataclass(frozen=True)
class Case:
    """A signature, the records of its key, our result, and whether dkimpy accepts it."""

    tags: str = PLAIN
    records: list[str] = field(default_factory=lambda: [published(RSA)])
    ours: str = "pass"
    theirs: bool = True
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = RSA


def changed(old: str, new: str) -> str:
    assert PLAIN.count(old) == 1
    return PLAIN.replace(old, new)


def keyed(*records: str, ours: str = "pass", theirs: bool = True) -> Case:
    return Case(records=[*records], ours=ours, theirs=theirs)


GOOD: Final[dict[str, Case]] = {
    "plain": Case(),
    "semicolon at the end": Case(PLAIN + ";"),
    "blank behind h=": Case(changed("h=from:subject", "h= from : subject ")),
    "blanks around every tag": Case(changed("; s=rsa;", " ;\t s\r\n\t = \r\n\t rsa ;")),
    "colon behind h": Case(changed("h=from:subject", "h=from:subject:")),
    "upper case in h": Case(changed("h=from:subject", "h=From:SUBJECT")),
    "field in h that is not there": Case(changed("h=from:", "h=from:x-none:")),
    "doubled semicolon": Case(changed("v=1;", "v=1;;"), theirs=False),
    "folded inside b": Case(PLAIN.replace("b=B", "b=FOLDED")),
    "blank before b": Case(PLAIN.replace("b=B", "b= B")),
    "tags behind b": Case(PLAIN + "; x-unknown=1"),
    "unknown tags": Case(changed("v=1;", "v=1; z=From:a; t-x=1; darn=;")),
    "order": Case("b=B; bh=BH; h=from; s=rsa; d=example.org; c=relaxed/relaxed; a=rsa-sha256; v=1"),
    "upper case": Case(
        changed("a=rsa-sha256; c=relaxed/relaxed", "a=RSA-SHA256; c=Relaxed/Relaxed"), theirs=False
    ),
    "upper case of d": Case(changed("d=example.org", "d=EXAMPLE.org")),
    "dot behind d": Case(changed("d=example.org", "d=example.org."), theirs=False),
    "q": Case(changed("v=1;", "v=1; q=dns/txt;")),
    "q of old": Case(changed("v=1;", "v=1; q=dns;"), theirs=False),
    "t": Case(changed("v=1;", f"v=1; t={NOW};")),
    "x to come": Case(changed("v=1;", f"v=1; t={NOW}; x={NOW + 9999};")),
    "x just now": Case(changed("v=1;", "v=1; t=1; x=EXPIRED;")),
    "i": Case(changed("v=1;", "v=1; i=alice@example.org;")),
    "i of a subdomain": Case(changed("v=1;", "v=1; i=@news.example.org;")),
    "i with blanks": Case(changed("v=1;", "v=1; i=alice @\r\n\t example.org ;"), theirs=False),
    "l for the whole": Case(changed("v=1;", "v=1; l=SIZE;")),
    "no padding": Case(PLAIN.replace("bh=BH; b=B", "bh=BARE; b=UNPADDED"), theirs=False),
    "key wrapped": keyed(f"v=DKIM1; k=rsa; p={WRAPPED}"),
    "key with blanks around": keyed(f"v=DKIM1 ; k = rsa ; p =  {SPKI}  "),
    "key without v": keyed(f"k=rsa; p={SPKI}"),
    "key without k": keyed(f"v=DKIM1; p={SPKI}"),
    "key of p only": keyed(f"p={SPKI}"),
    "key with an empty k": keyed(f"v=DKIM1; k=; p={SPKI}", theirs=False),
    "key in capitals": keyed(f"v=DKIM1; k=RSA; h=SHA256; s=Email; p={SPKI}", theirs=False),
    "key with semicolons": keyed(f"v=DKIM1;; k=rsa;; p={SPKI};;", theirs=False),
    "key with quotes": keyed(f'"v=DKIM1; k=rsa; p={SPKI}"', theirs=False),
    "key with quotes inside": keyed(f'v=DKIM1; k=rsa; p={SPKI[:200]}" "{SPKI[200:]}'),
    "key with backslashes": keyed(f"v=DKIM1\\; k=rsa\\; p={SPKI}", theirs=False),
    "key without padding": keyed(f"v=DKIM1; k=rsa; p={SPKI.rstrip('=')}"),
    "key with notes": keyed(f"v=DKIM1; n=a note; g=*; s=*; t=s; p={SPKI}"),
    "key beside other records": keyed(
        *("v=spf1 -all", "x", "y", "google-site-verification=z", f"v=DKIM1; p={SPKI}"), theirs=False
    ),
    "key as PKCS 1": keyed(f"v=DKIM1; p={octets(RSA, PublicFormat.PKCS1)}"),
    "key of 1024 bits": Case(records=[published(WEAK)], key=WEAK),
    "Ed25519": Case(
        changed("rsa-sha256", "ed25519-sha256"), [published(ED25519)], key=ED25519
    ),
    "Ed25519 as SubjectPublicKeyInfo": Case(
        changed("rsa-sha256", "ed25519-sha256"),
        [f"v=DKIM1; k=ed25519; p={octets(ED25519, PublicFormat.SubjectPublicKeyInfo)}"],
        theirs=False,
        key=ED25519,
    ),
}  # fmt: skip
BAD: Final[dict[str, Case]] = {
    "SHA-1": Case(
        changed("rsa-sha256", "rsa-sha1"), ours="policy the algorithm is rsa-sha1", theirs=False
    ),
    "key of 512 bits": Case(
        records=[published(TOO_WEAK)],
        ours="policy the key has 1023 bits only",
        theirs=False,
        key=TOO_WEAK,
    ),
    "x that is over": Case(
        changed("v=1;", f"v=1; t={NOW - 99999}; x={NOW - 90000};"),
        ours="policy the signature has expired",
        theirs=False,
    ),
    "l for a part": Case(
        changed("v=1;", "v=1; l=5;"), ours="policy only a part of the body is signed"
    ),
    "i of another": Case(
        changed("v=1;", "v=1; i=@example.com;"),
        ours="neutral the tag i is not of the domain",
        theirs=False,
    ),
    "tag twice": Case(
        changed("v=1;", "v=1; v=1;"), ours="neutral 'v=1' is no tag, or there twice", theirs=False
    ),
    "no v": Case(changed("v=1; ", ""), ours="neutral there is no tag v", theirs=False),
    "another key": keyed(
        published(OTHER), ours="fail the header is not what was signed", theirs=False
    ),
    "revoked": keyed("v=DKIM1; p=", ours="permerror the key is revoked", theirs=False),
    "version of the key": keyed(
        published(RSA).replace("DKIM1", "dkim1"),
        ours="permerror the version of the key is dkim1",
        theirs=False,
    ),
    "key for another service": keyed(
        f"v=DKIM1; s=tlsrpt; p={SPKI}", ours="permerror the key is not for mail", theirs=False
    ),
    "key for SHA-1": keyed(
        f"v=DKIM1; h=sha1; p={SPKI}", ours="permerror the key is not for sha256"
    ),
}


def signed(case: Case) -> bytes:
    """Return the message with the signature of a case, whose b is filled in."""
    digest = body_hash(io.BytesIO(MESSAGE))
    if "l=5" in case.tags:
        digest = hashlib.sha256(b"Hello").digest()
    coded = b64encode(digest).decode()
    body = MESSAGE.partition(b"\r\n\r\n")[2]
    size = len(body.replace(b"\t  ", b" ").replace(b". \r\n", b".\r\n").rstrip(b"\r\n")) + 2
    tags = case.tags.replace("BH", coded).replace("BARE", coded.rstrip("="))
    tags = tags.replace("SIZE", str(size)).replace("EXPIRED", str(int(time.time()) - 60))
    place = max(tags.rfind(f"b={mark}") for mark in ("B", "FOLDED", "UNPADDED"))
    place = tags.index("b= B") if place < 0 else place
    begin = place + len("b=")
    end = tags.find(";", begin) if ";" in tags[begin:] else len(tags)
    mark = tags[begin:end].strip()
    found = re.search(r"(?:^|[;\s])h\s*=([^;]*)", tags)
    assert found is not None
    names = found[1].lower()
    header = b""
    for name in (each.strip() for each in names.split(":")):
        for line in MESSAGE.partition(b"\r\n\r\n")[0].replace(b"\r\n\t", b" \t").split(b"\r\n"):
            if line.lower().startswith(name.encode() + b":") and name:
                header += relaxed_field(line + b"\r\n")
    unsigned = relaxed_field(f"DKIM-Signature: {tags[:begin]}{tags[end:]}".encode())
    made = b64encode(signature_of(case.key, header + unsigned.removesuffix(b"\r\n"))).decode()
    if mark == "FOLDED":
        made = "\r\n\t ".join(made[start : start + 30] for start in range(0, len(made), 30))
    if mark == "UNPADDED":
        made = made.rstrip("=")
    blank = " " if tags[begin:end].startswith(" ") else ""
    return f"DKIM-Signature: {tags[:begin]}{blank}{made}{tags[end:]}\r\n".encode() + MESSAGE


@pytest.mark.parametrize("case", [*GOOD.values(), *BAD.values()], ids=[*GOOD, *BAD])
def test_signature_is_judged_as_others_do(case: Case) -> None:
    """RFC 6376, RFC 8301: what is lenient here proves itself by its signature."""
    content = signed(case)
    names = {"rsa._domainkey.example.org": case.records}
    assert verify(content, {**names})[1] == [case.ours]

    def dnsfunc(name: bytes, timeout: int = 5) -> bytes:
        del timeout
        known = name.lower() == b"rsa._domainkey.example.org."
        return case.records[0].encode() if known else b""

    assert dkim.verify(content, dnsfunc=dnsfunc) is case.theirs
