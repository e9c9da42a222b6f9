"""What rounding to the resolution of a secure sum does to the noise and to the norm of an update.

A client sends parameters θ, rounded to float32 (to multiples of at most 2⁻²³ |θ|) and then to multiples of 2⁻²⁴. The
resolution of a value is the larger of both.

**Noise.** A client that adds all of its noise rounds it afterwards, which is post-processing. Clients that share the
noise each round their own value x + n, where n has the standard deviation ρ, and only the sum of the rounded values has
all the noise. Let u be the resolution, R the rounding, and U independent and uniform on [-u/2, u/2]. Then

    P[R(a) + R(b) = k u] = (1 + e) P[R(a + b + U) = k u]   with   |e| ≤ r = 2 Σ_{l ≥ 1} exp(-π² l² ρ² / u²)

for independent Gaussian a and b, each of a standard deviation of at least ρ. (R(a) has the density of a + U at the
multiples of u, times u. The left side is therefore a sum over a grid of step u, and the right side the integral, of a
mixture of products of two Gaussian densities. Such a product is proportional to a Gaussian density whose variance is at
least ρ²/2. By Poisson's summation formula, the sum over a grid differs from the integral by a factor of 1 ± r, as in
Kairouz et al. 2021, arXiv 2102.06387, for discrete Gaussians.) By induction, a sum of m rounded values is the rounded
sum of m values and m - 1 uniform numbers, which is post-processing of the exact sum, up to a factor of (1 ± r)^(m - 1).
Over d values and T rounds this adds at most about 2 (m - 1) d T r to ε. With ρ ≥ 3 u, r is below 1e-38: nothing.

**Norm.** With client-level privacy and noise from the server, each client clips its update to the norm S, and nobody
can clip it again. Rounding adds a vector of a norm of at most 2⁻²⁴ (‖θ‖ + S) + 2⁻²⁵ √d to it.
"""

from __future__ import annotations

import math

from fedsvd.secagg.vectors import FRACTION_BITS

# Of one client's share of the noise, in units of the resolution.
MIN_NOISE_STD = 3.0
_UNIT = 2.0**-FRACTION_BITS
# Relative spacing of float32 numbers, at most.
_FLOAT32_SPACING = 2.0**-23
# Covers the rounding errors of norms that are computed in float64.
_SLACK = 1.0 + 1e-3


def resolution(largest: float) -> float:
    """Return the largest step between neighboring values that a client can send.

    Args:
        largest: The largest absolute value of a parameter.
    """
    return max(_UNIT, _FLOAT32_SPACING * largest)


def rounding_norm(start_norm: float, size: int, max_update_norm: float) -> float:
    """Return an upper bound on the L2 norm of what rounding adds to a client's update.

    Args:
        start_norm: L2 norm of the parameters before the update.
        size: Number of parameters.
        max_update_norm: L2 norm of the update, at most.
    """
    return _SLACK * (_FLOAT32_SPACING / 2 * (start_norm + max_update_norm) + _UNIT / 2 * math.sqrt(size))
