"""Keys of one round: agreed on pairwise (X25519), shared out by threshold (Shamir), carried encrypted (Fernet)."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat, share_keys_plaintext_separate

from fedsvd.errors import PayloadError

KEY_BYTES = 32


@dataclass(frozen=True)
class Shares:
    """What one client holds of another's secrets; a server may be given one of the two, never both."""

    self_mask: bytes
    mask_key: bytes


def new_private_key() -> bytes:
    """Return a fresh X25519 private key."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private_key: bytes) -> bytes:
    """Return the public key that belongs to a private one."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def shared_key(private_key: bytes, other_public_key: bytes, purpose: str) -> bytes:
    """Return the 32-byte key that two clients share for one purpose and nobody else can compute.

    Raises:
        PayloadError: A public key that is none.
    """
    try:
        other = X25519PublicKey.from_public_bytes(other_public_key)
        secret = X25519PrivateKey.from_private_bytes(private_key).exchange(other)
    except ValueError as error:
        raise PayloadError(f"a client's public key is not one of X25519 ({error}).") from error
    info = f"fedsvd secure aggregation: {purpose}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def new_seed() -> bytes:
    """Return a fresh key for a client's own mask."""
    return os.urandom(KEY_BYTES)


def distribute_shares(
    node: int, seed: bytes, mask_key: bytes, channels: Mapping[int, bytes], threshold: int
) -> dict[int, bytes]:
    """Split both secrets among the holders of ``channels``, each share encrypted for its holder.

    Args:
        node: Whose secrets they are.
        seed: Key of the node's own mask.
        mask_key: Private key of its pairwise masks.
        channels: For each holder the key that it shares with the node.
        threshold: Shares that are needed to restore a secret.

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
        PayloadError: They were tampered with, or are not from one to the other.
    """
    try:
        plaintext = decrypt(base64.urlsafe_b64encode(channel), ciphertext)
        found_source, found_holder, self_mask, mask_key = share_keys_plaintext_separate(plaintext)
    except (InvalidToken, IndexError) as error:
        raise PayloadError(f"the key shares of node {source} cannot be decrypted.") from error
    if (found_source, found_holder) != (source, holder):
        raise PayloadError(f"the key shares of node {source} are not what they are said to be.")
    return Shares(self_mask, mask_key)


def reconstruct_secret(shares: Sequence[bytes]) -> bytes:
    """Restore a secret from at least as many shares as its threshold asks for.

    Raises:
        PayloadError: The shares do not belong together.
    """
    try:
        return combine_shares(list(shares))
    except ValueError as error:
        raise PayloadError("key shares that do not belong together.") from error


def threshold(num_clients: int, min_survivors: int) -> int:
    """Return how many shares restore a secret: more than half of all, and no fewer than must survive a round.

    With more than half, no two disjoint sets of clients could each be told another set of survivors.
    """
    return max(min_survivors, num_clients // 2 + 1)
