"""TLSA records against certificates (RFC 6698), and the fields of a certificate."""

from __future__ import annotations

import contextlib
import hashlib
import ssl

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate
from hypothesis import given
from hypothesis import strategies as st

from minismtp.delivery.dane import Dane, Tlsa
from minismtp.values.der import certificate_fields, elements

AUTHORITIES = [trustme.CA(key_type=each) for each in trustme.KeyType]
CHAINS = [
    [
        ssl.PEM_cert_to_DER_cert(pem.bytes().decode())
        for pem in (leaf.cert_chain_pems[0], ca.cert_pem)
    ]
    for ca, key in zip(AUTHORITIES, trustme.KeyType, strict=True)
    for leaf in [ca.issue_cert("mx.example.net", key_type=key)]
]


@pytest.mark.parametrize("certificate", [each for chain in CHAINS for each in chain])
def test_the_public_key_of_a_certificate_is_what_cryptography_says(certificate: bytes) -> None:
    key = load_der_x509_certificate(certificate).public_key()
    wanted = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert certificate_fields(certificate)[5].octets == wanted
    digest = hashlib.sha512(wanted).digest()
    assert Tlsa(3, 1, 2, digest).names(certificate)
    assert not Tlsa(3, 0, 2, digest).names(certificate)


@given(st.binary())
def test_what_is_no_certificate_raises_value_error_at_most(octets: bytes) -> None:
    list(elements(octets))
    with contextlib.suppress(ValueError):
        certificate_fields(octets)
    with pytest.raises(ValueError, match="not a certificate"):
        certificate_fields(octets[:3])


@pytest.mark.parametrize(
    ("numbers", "usable"),
    [
        ((2, 0, 0), True),
        ((3, 1, 2), True),
        ((0, 0, 1), False),  # RFC 7672 section 3.1.3
        ((1, 1, 1), False),
        ((4, 1, 1), False),
        ((3, 2, 1), False),
        ((3, 1, 3), False),
    ],
)
def test_some_records_cannot_be_used(numbers: tuple[int, int, int], usable: bool) -> None:
    assert Tlsa(*numbers, b"").usable == usable


def test_only_an_authority_that_is_named_is_an_anchor() -> None:
    [leaf, authority], [_, other] = CHAINS
    dane = Dane(
        "mx.example.net",
        (
            Tlsa(2, 0, 1, hashlib.sha256(authority).digest()),
            Tlsa(3, 0, 1, hashlib.sha256(other).digest()),
        ),
    )
    assert dane.among([leaf, authority, other]) == [authority]
    assert dane.names(other, 3)
    assert not dane.names(authority, 3)
