"""Keys of the secure sum: identities that sites pin, keys that live for one release, and what is derived from them.

An *identity* is an Ed25519 key of a hospital; its peers have its public half in their own site files, written
`ed25519:` and 44 characters of base64. A *fresh key* is an X25519 key made for one release and deleted with it. Two
fresh keys of two sites agree on a secret; every use of it has its own derived key, so that a recovered mask key opens
no sealed share.

>>> identity = Identity.generate()
>>> parse_key(identity.text) == identity.public
True
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from equipoise.common.canonical import canonical_json
from equipoise.common.errors import StudyError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
DIGEST_BYTES = 32
TAG_BYTES = 16
_PREFIX = "ed25519:"


class Identity:
    """A site's long-lived signing key (Ed25519, RFC 8032); made once, kept in a file of the site alone."""

    def __init__(self, private: bytes) -> None:
        """The identity whose private key (the seed of RFC 8032) is the 32 bytes `private`."""
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Identity:
        """A new identity from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def private(self) -> bytes:
        """The 32 bytes to be kept secret."""
        return self._private.private_bytes_raw()

    @property
    def text(self) -> str:
        """The public key as site files write it."""
        return key_text(self.public)

    def sign(self, statement: bytes) -> bytes:
        """Signature of 64 bytes."""
        return self._private.sign(statement)


def key_text(public: bytes) -> str:
    """A public identity key as site files write it."""
    return _PREFIX + base64.b64encode(public).decode("ascii")


def parse_key(text: str) -> bytes:
    """The 32 bytes of a public identity key.

    Raises:
        StudyError: the text is no such key.
    """
    try:
        public = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        public = b""
    if not text.startswith(_PREFIX) or len(public) != KEY_BYTES or key_text(public) != text:
        raise StudyError(
            f"key {text[:60]!r}: expected {_PREFIX} and 44 characters of base64, as the peer's agent prints"
        )
    return public


def is_signed(public: bytes, signature: bytes, statement: bytes) -> bool:
    """Whether `signature` is the identity's under `statement`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True


class FreshKey:
    """An X25519 key (RFC 7748) for one purpose in one release."""

    def __init__(self, private: bytes) -> None:
        """The key whose private half is the 32 bytes `private`."""
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> FreshKey:
        """A new key from the operating system's randomness."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    @property
    def private(self) -> bytes:
        """The 32 bytes to be deleted after the release."""
        return self._private.private_bytes_raw()

    def is_safe(self, public: bytes) -> bool:
        """Whether agreement with `public` gives a secret; with a point of small order everybody knows the result."""
        try:
            self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            return False
        return True

    def agree(self, public: bytes, *context: str) -> bytes:
        """32 bytes that only this key and the owner of `public` can derive, for the use that `context` names.

        Raises:
            ValueError: `public` is not safe.
        """
        return derive(self._private.exchange(X25519PublicKey.from_public_bytes(public)), *context)


def derive(secret: bytes, *context: str) -> bytes:
    """32 bytes from `secret` for one use, named by `context` (HKDF with SHA-256, RFC 5869)."""
    info = canonical_json(["equipoise secure sum 1", *context])
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def commitment(secret: bytes, *context: str) -> bytes:
    """A digest that binds to `secret`, which has to be unguessable: 256 bits of it are."""
    return hashlib.blake2b(canonical_json(list(context)) + b"\x00" + secret, digest_size=DIGEST_BYTES).digest()


def seal(key: bytes, plain: bytes) -> bytes:
    """`plain` encrypted and authenticated (ChaCha20-Poly1305, RFC 8439); a key seals once, so its nonce is 0."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """What `seal` was given.

    Raises:
        ValueError: the bytes were sealed with another key, or changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        raise ValueError("sealed bytes do not fit their key") from None
