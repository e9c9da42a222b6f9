"""Secure aggregation: pairwise masks that cancel in the sum, so that the server learns nothing but the sum.

The protocol is that of Bonawitz et al. 2017 (https://eprint.iacr.org/2017/281), in the four stages of Flower's SecAgg+
(setup, share keys, collect masked vectors, unmask), with Flower's secret sharing and encryption. Unlike in Flower,
masks do not come from a Mersenne Twister with a 32-bit seed, but from ChaCha20 keyed by 256-bit shared secrets. They
are added to fixed-point numbers in the integers modulo 2⁶⁴, so that a uniform mask hides a value perfectly and sums add
no rounding error.
"""
