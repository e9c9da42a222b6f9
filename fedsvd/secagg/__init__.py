"""Secure aggregation: pairwise masks that cancel in the sum, so that a server learns nothing but the sum.

The protocol is that of Bonawitz et al. 2017 (https://eprint.iacr.org/2017/281), in the four stages of Flower's SecAgg+
(setup, share keys, collect masked vectors, unmask) and with Flower's own secret sharing and encryption. Masks come from
ChaCha20 keyed by 256-bit shared secrets, not from Flower's Mersenne Twister with a 32-bit seed, and are added in the
integers modulo 2⁶⁴ to fixed-point numbers, so that they hide a value perfectly and sums have no rounding of their own.
"""
