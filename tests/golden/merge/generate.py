"""Makes flwr.json: what Flower's strategies give for fixed inputs, to compare ours with.

Flower brings its own pins of some forty packages, which do not go together with ours; so it is asked in an environment
of its own, and its answers are kept:

    python -m venv /tmp/flower && /tmp/flower/bin/pip install flwr==1.41.0
    /tmp/flower/bin/python tests/golden/merge/generate.py

Needs nothing of this project.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS, HEADS, SIZE = 3, 7, 16
FAULTY = 2


def numbers(seed: int) -> np.ndarray[Any, Any]:
    """float64 [SIZE] in [-1, 1), by integer arithmetic alone."""
    found, state = np.empty(SIZE), seed
    for place in range(SIZE):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        found[place] = (state >> 40) / 2**23 - 1
    return found


def heads(base: np.ndarray[Any, Any], number: int) -> list[np.ndarray[Any, Any]]:
    """Heads of one round; the last two are far off."""
    near = [base + numbers(100 * number + head) / 32 for head in range(HEADS - FAULTY)]
    return near + [base + 50 * numbers(100 * number + head) for head in range(HEADS - FAULTY, HEADS)]


def samples(number: int) -> list[int]:
    """Examples of each head in one round."""
    return [10 + (3 * number + 5 * head) % 7 for head in range(HEADS)]


def main() -> None:
    """Ask Flower, write its answers beside this file."""
    found = {"flwr": version("flwr"), **aggregated(), **optimised()}
    Path(__file__).with_name("flwr.json").write_text(json.dumps(found, indent=1) + "\n")


def aggregated() -> dict[str, Any]:
    """One round of what has no state."""
    from flwr.server.strategy.aggregate import aggregate, aggregate_krum, aggregate_median, aggregate_trimmed_avg

    given = [([head], count) for head, count in zip(heads(numbers(0), 1), samples(1), strict=True)]
    return {
        "fedavg": aggregate(given)[0].tolist(),
        "median": aggregate_median(given)[0].tolist(),
        "trimmed_mean": aggregate_trimmed_avg(given, FAULTY / HEADS)[0].tolist(),
        "krum": aggregate_krum(given, FAULTY, 0)[0].tolist(),
        "multi_krum": aggregate_krum([(one, 1) for one, _ in given], FAULTY, HEADS - FAULTY)[0].tolist(),
    }


def optimised() -> dict[str, Any]:
    """Rounds of the optimisers; each begins where the last one ended."""
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.strategy import FedAdam, FedYogi

    found: dict[str, Any] = {}
    for name, kind in (("fedadam", FedAdam), ("fedyogi", FedYogi)):
        strategy = kind(initial_parameters=ndarrays_to_parameters([numbers(0)]), eta=0.01, tau=1e-3, beta_2=0.99)
        values, rounds = numbers(0), []
        for number in range(1, ROUNDS + 1):
            results = [
                (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([head]), count, {}))
                for head, count in zip(heads(values, number), samples(number), strict=True)
            ]
            parameters, _ = strategy.aggregate_fit(number, results, [])  # type: ignore[arg-type]
            values = parameters_to_ndarrays(parameters)[0]
            rounds.append(values.tolist())
        found[name] = rounds
    return found


if __name__ == "__main__":
    main()
