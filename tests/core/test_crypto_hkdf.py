"""HKDF-SHA256 by the vectors of RFC 5869, and the encoding that everything keyed relies on."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import example, given
from hypothesis import strategies as st

from tenancy_core.crypto.encoding import join
from tenancy_core.crypto.hkdf import derive, expand, extract

# RFC 5869, appendix A: material, salt, info, pseudorandom key, output. All three with SHA-256.
VECTORS = {
    "A.1": (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    "A.2": (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        (
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
            "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
            "cc30c58179ec3e87c14c01d5c1f3434f1d87"
        ),
    ),
    "A.3": (
        "0b" * 22,
        "",
        "",
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_vectors_of_rfc_5869(name: str) -> None:
    material, salt, info, key, output = map(bytes.fromhex, VECTORS[name])
    assert extract(salt, material) == key
    assert expand(key, info, len(output)) == output


@given(st.binary(max_size=80), st.binary(max_size=80), st.integers(1, 200))
def test_it_is_the_hkdf_of_another_implementation(salt: bytes, info: bytes, length: int) -> None:
    material = b"material" * 5
    theirs = HKDF(SHA256(), length, salt, info).derive(material)
    assert expand(extract(salt, material), info, length) == theirs


def test_one_key_gives_no_more_than_it_can() -> None:
    assert len(expand(bytes(32), b"", 255 * 32)) == 255 * 32
    with pytest.raises(ValueError, match="at most 8160 bytes"):
        expand(bytes(32), b"", 255 * 32 + 1)


lists = st.lists(st.binary(max_size=9), max_size=5)


@example([b"ab", b"c"], [b"a", b"bc"])
@example([b""], [])
@example([b"", b""], [b""])
@example([bytes(8)], [b"", b""])
@example([(1).to_bytes(8, "big") + b"x"], [b"x"])
@given(lists, lists)
def test_no_two_lists_are_one_message(one: list[bytes], other: list[bytes]) -> None:
    assert (join(*one) == join(*other)) == (one == other)


@given(lists)
def test_a_message_can_be_taken_apart_in_one_way_only(parts: list[bytes]) -> None:
    data, found = join(*parts), []
    while data:
        length = int.from_bytes(data[:8], "big")
        found.append(data[8 : 8 + length])
        data = data[8 + length :]
    assert found == parts


labels = st.lists(st.binary(max_size=4), max_size=3)


@example(b"k", [], b"k\0", [])
@example(b"k", [b"a", b"b"], b"k", [b"ab"])
@given(st.binary(max_size=4), labels, st.binary(max_size=4), labels)
def test_a_key_is_for_one_secret_and_one_use(
    secret: bytes, label: list[bytes], other: bytes, its: list[bytes]
) -> None:
    same = (secret, label) == (other, its)
    assert (derive(secret, *label)[1] == derive(other, *its)[1]) == same


def test_the_id_of_a_key_tells_nothing_about_it() -> None:
    key_id, key = derive(b"secret")
    assert len(key_id) == 4
    assert len(key) == 32
    assert not key.startswith(key_id)
