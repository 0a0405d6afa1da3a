"""The ledger's self-signed certificate through the years: what is renewed when, and who still knows it then."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterator

import pytest
from cryptography import x509

from almoner_operator.certificates import (
    ANNOUNCE,
    AUTHORITY,
    AUTHORITY_KEY,
    CERTIFICATE,
    FILES,
    KEY,
    LEAF,
    NEXT_KEY,
    RENEW,
    SWITCH,
    TRUSTED,
    ContentError,
    expires,
    renewed,
)

NAMES = ["almoner-ledger", "almoner-ledger.almoner-system.svc", "localhost"]
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
Content = dict[str, str]


def leaf(content: Content) -> x509.Certificate:
    return x509.load_pem_x509_certificate(content[CERTIFICATE].encode())


def authorities(content: Content) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(content[TRUSTED].encode())


def known_by(content: Content, trusted: Content) -> bool:
    """Whether a meter that was given `trusted` knows the ledger that serves `content`."""
    for each in authorities(trusted):
        if each.subject == leaf(content).issuer:
            leaf(content).verify_directly_issued_by(each)
            return True
    return False


@pytest.fixture(scope="module")
def first() -> Content:
    return renewed({}, NAMES, START)


def years(step: dt.timedelta, until: dt.timedelta) -> Iterator[tuple[dt.datetime, Content]]:
    """What the Secret holds, looked at every `step`."""
    content, now = renewed({}, NAMES, START), START
    while now - START < until:
        content = renewed(content, NAMES, now)
        yield now, content
        now += step


def test_the_first_one(first: Content) -> None:
    assert set(first) == set(FILES) - {NEXT_KEY}
    assert expires(first) == START + LEAF
    (authority,) = authorities(first)
    assert authority.not_valid_after_utc == START + AUTHORITY
    assert known_by(first, first)
    names = leaf(first).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == NAMES
    # Python 3.13 and OpenSSL are strict about what an authority's certificate has to say.
    context = ssl.create_default_context(cadata=first[TRUSTED])
    assert len(context.get_ca_certs()) == 1


def test_nothing_is_due_until_a_third_of_its_life_is_left(first: Content) -> None:
    assert renewed(first, NAMES, START + LEAF - RENEW - DAY) == first
    later = renewed(first, NAMES, START + LEAF - RENEW)
    assert later[KEY] != first[KEY]
    assert {name: later[name] for name in (TRUSTED, AUTHORITY_KEY)} == {
        name: first[name] for name in (TRUSTED, AUTHORITY_KEY)
    }
    assert known_by(later, first)


def test_other_names_are_another_certificate(first: Content) -> None:
    other = renewed(first, [*NAMES, "more"], START + DAY)
    assert other[TRUSTED] == first[TRUSTED]
    assert leaf(other) != leaf(first)


def test_an_authority_is_known_long_before_it_signs_and_as_long_as_it_is_good() -> None:
    history = list(years(10 * DAY, 2 * AUTHORITY))
    for now, content in history:
        assert leaf(content).not_valid_before_utc <= now < expires(content)
        assert all(each.not_valid_after_utc > now for each in authorities(content))
        # A meter is told once, when its pod is made, and has to know every certificate until its pod ends.
        oldest = now - (ANNOUNCE - SWITCH - 11 * DAY)
        told = next(earlier for then, earlier in history if then >= oldest)
        assert known_by(content, told)
        assert known_by(content, content)
        assert len(authorities(content)) <= 2
    assert len({content[AUTHORITY_KEY] for _, content in history}) >= 2
    assert any(NEXT_KEY in content for _, content in history)


def test_what_was_not_looked_at_for_twenty_years_is_made_anew(first: Content) -> None:
    now = START + 2 * AUTHORITY
    later = renewed(first, NAMES, now)
    assert known_by(later, later)
    assert not known_by(later, first)
    assert renewed(later, NAMES, now) == later


@pytest.mark.parametrize("name", [CERTIFICATE, KEY])
@pytest.mark.parametrize("text", [None, "", "rubbish"], ids=["gone", "empty", "rubbish"])
def test_a_certificate_that_is_broken_is_signed_anew_by_the_same_authority(
    first: Content, name: str, text: str | None
) -> None:
    broken = {each: content for each, content in first.items() if each != name} | ({} if text is None else {name: text})
    repaired = renewed(broken, NAMES, START + DAY)
    assert repaired[TRUSTED] == first[TRUSTED]
    assert known_by(repaired, first)
    assert renewed(repaired, NAMES, START + DAY) == repaired


@pytest.mark.parametrize("name", [TRUSTED, AUTHORITY_KEY])
@pytest.mark.parametrize("text", ["", "rubbish", "of another"])
def test_an_authority_that_is_broken_is_said(first: Content, name: str, text: str) -> None:
    given = renewed({}, NAMES, START)[name] if text == "of another" else text
    with pytest.raises(ContentError, match=r"ca\.crt|ca\.key"):
        renewed({**first, name: given}, NAMES, START + DAY)


def test_a_key_that_is_no_key_of_a_curve_is_said(first: Content) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ContentError, match="elliptic curve"):
        renewed({**first, AUTHORITY_KEY: key.decode()}, NAMES, START)
