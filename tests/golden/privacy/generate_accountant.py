"""Writes accountant.json: what others say about the (sampled) Gaussian mechanism.

``cases``: the library ``dp-accounting``, at whole orders (at others it adds up absolute values, an upper bound).
``integrals``: the definition of the divergence at any order, integrated by ``mpmath`` with 40 digits.

Run by hand, with those libraries in an environment of its own (they are no dependencies of this project):

    python -m venv oracle && oracle/bin/pip install dp-accounting==0.6.0 mpmath
    oracle/bin/python tests/golden/privacy/generate_accountant.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant
from mpmath import mp, mpf, quad

SHOWN = (2, 3, 5, 16, 32, 63, 256)
ORDERS = (*range(2, 64), 128, 256)
CASES = [
    (noise, rate, steps)
    for noise in (0.3, 0.7, 1.0, 1.1, 2.0, 4.0, 20.0)
    for rate, steps in ((1.0, 1), (1.0, 16), (0.5, 4), (0.01, 10_000), (256 / 60_000, 14_063), (1e-4, 1000))
]
INTEGRALS = [
    (order, noise, rate)
    for noise in (0.3, 0.7, 1.1, 4.0, 20.0)
    for rate in (0.3, 0.01, 1e-4)
    for order in (1.05, 1.5, 2.5, 3.7, 8.3)
]
DELTAS = (1e-5, 1e-8)


def case(noise: float, rate: float, steps: int) -> dict[str, object]:
    accountant = RdpAccountant(ORDERS)
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps))
    curve = dict(zip(ORDERS, accountant._rdp, strict=True))
    return {
        "noise_multiplier": noise,
        "rate": rate,
        "steps": steps,
        "divergences": [float(curve[order]) for order in SHOWN],
        "epsilons": [float(accountant.get_epsilon(delta)) for delta in DELTAS],
    }


def divergence(order: float, noise: float, rate: float) -> float:
    """log of the integral of p0 * (p/p0)**order over the real line, over order - 1; p = (1-q) p0 + q p1."""
    mp.dps = 40
    alpha, sigma, share = mpf(order), mpf(noise), mpf(rate)

    def integrand(x):
        ratio = (1 - share) + share * mp.exp((2 * x - 1) / (2 * sigma**2))
        return mp.npdf(x, 0, sigma) * ratio**alpha

    far = [-60 * sigma, -20 * sigma, -8 * sigma, -2 * sigma]
    points = [*far, 0, 0.5, 1, 2, alpha, alpha + 4 * sigma, alpha + 10 * sigma, alpha + 40 * sigma]
    return float(mp.log(quad(integrand, sorted(points))) / (alpha - 1))


if __name__ == "__main__":
    golden = {
        "libraries": [f"{name} {version(name)}" for name in ("dp-accounting", "mpmath")],
        "shown": SHOWN,
        "orders": ORDERS,
        "deltas": DELTAS,
        "cases": [case(*one) for one in CASES],
        "integrals": [[*one, divergence(*one)] for one in INTEGRALS],
    }
    Path(__file__).with_name("accountant.json").write_text(json.dumps(golden) + "\n")
