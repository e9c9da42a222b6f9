"""Keys of one round: pairwise agreement (X25519), threshold secret sharing (Shamir) and encrypted shares (Fernet)."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsvd.compat.flower import (
    combine_shares,
    create_shares,
    decrypt,
    encrypt,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from fedsvd.errors import PayloadError

KEY_BYTES = 32


@dataclass(frozen=True)
class Shares:
    """One client's shares of another client's two secrets; the server may receive one of the two, never both.

    Attributes:
        self_mask: Share of the seed of the other client's own mask.
        mask_key: Share of the private key of the other client's pairwise masks.
    """

    self_mask: bytes
    mask_key: bytes


def new_private_key() -> bytes:
    """Return a fresh X25519 private key."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private_key: bytes) -> bytes:
    """Return the public key that belongs to a private key."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def shared_key(private_key: bytes, other_public_key: bytes, purpose: str) -> bytes:
    """Return the 32-byte key that two clients share for one purpose and that nobody else can compute.

    Raises:
        PayloadError: The public key is invalid.
    """
    try:
        other = X25519PublicKey.from_public_bytes(other_public_key)
        secret = X25519PrivateKey.from_private_bytes(private_key).exchange(other)
    except ValueError as error:
        raise PayloadError(f"a client's public key is not a valid X25519 key ({error}).") from error
    info = f"fedsvd secure aggregation: {purpose}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def new_seed() -> bytes:
    """Return a fresh 32-byte key for a client's own mask."""
    return os.urandom(KEY_BYTES)


def distribute_shares(
    node: int, seed: bytes, mask_key: bytes, channels: Mapping[int, bytes], threshold: int
) -> dict[int, bytes]:
    """Split both secrets among the holders in ``channels``, and encrypt each share for its holder.

    Args:
        node: The node that owns the secrets.
        seed: Key of the node's own mask.
        mask_key: Private key of the node's pairwise masks.
        channels: The key that each holder shares with the node.
        threshold: Number of shares that are needed to reconstruct a secret.

    Returns:
        Ciphertexts by holder.
    """
    holders = sorted(channels)
    pairs = zip(
        create_shares(seed, threshold, len(holders)), create_shares(mask_key, threshold, len(holders)), strict=True
    )
    return {
        holder: encrypt(base64.urlsafe_b64encode(channels[holder]), share_keys_plaintext_concat(node, holder, *pair))
        for holder, pair in zip(holders, pairs, strict=True)
    }


def decrypt_shares(ciphertext: bytes, channel: bytes, source: int, holder: int) -> Shares:
    """Decrypt the shares that ``source`` sent to ``holder``.

    Raises:
        PayloadError: The shares were tampered with, or have another source or holder.
    """
    try:
        plaintext = decrypt(base64.urlsafe_b64encode(channel), ciphertext)
        actual_source, actual_holder, self_mask, mask_key = share_keys_plaintext_separate(plaintext)
    except (InvalidToken, IndexError) as error:
        raise PayloadError(f"the key shares of node {source} cannot be decrypted.") from error
    if (actual_source, actual_holder) != (source, holder):
        raise PayloadError(
            f"key shares from node {actual_source} to node {actual_holder} were received as shares from node {source} "
            f"to node {holder}."
        )
    return Shares(self_mask, mask_key)


def reconstruct_secret(shares: Sequence[bytes]) -> bytes:
    """Reconstruct a secret from at least as many shares as its threshold.

    Raises:
        PayloadError: The shares are inconsistent.
    """
    try:
        return combine_shares(list(shares))
    except ValueError as error:
        raise PayloadError("the key shares are inconsistent; the secret cannot be reconstructed.") from error


def reconstruction_threshold(num_clients: int, min_survivors: int) -> int:
    """Return the number of shares needed to reconstruct a secret: more than half, and at least ``min_survivors``.

    With more than half, the server cannot unmask by naming different survivors to two disjoint sets of clients.
    """
    return max(min_survivors, num_clients // 2 + 1)
