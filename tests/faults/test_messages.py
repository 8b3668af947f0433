"""Messages between real nodes dropped, repeated, swapped, damaged, delayed, held back and cut: all end with the same.

``FAULTS_SEEDS`` sets how many seeds all networks have together (200 where it is not set). A seed is run alone with
``FAULTS_FIRST=<seed> FAULTS_SEEDS=8``: every network then begins at that seed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from flight_proxy import Fault
from message_campaign import MessageTally, Network
from report import asked_for, keep

NETWORKS = 8
OVER_TLS = {3, 7}
SEEDS = asked_for("FAULTS_SEEDS", 200)


def run(folder: Path, seeds: range, *, tls: bool) -> MessageTally:
    print(f"seeds {seeds.start} to {seeds.stop - 1}, {'mutual TLS' if tls else 'plain'}")
    network = Network(folder, seeds.start, tls=tls)
    try:
        network.start()
        return network.run(seeds)
    finally:
        network.close()


def test_nodes_agree_whatever_happens_to_messages(tmp_path: Path) -> None:
    tally = run(tmp_path, range(4, 7), tls=False)
    assert tally.differing == 0
    assert tally.faults > 0


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", range(NETWORKS))
def test_two_hundred_seeds(tmp_path: Path, number: int) -> None:
    each = -(-SEEDS // NETWORKS)
    first = asked_for("FAULTS_FIRST", number * each)
    tally = run(tmp_path, range(first, first + each), tls=number in OVER_TLS)
    keep(f"messages-{number}", tally.to_json())
    assert tally.differing == 0
    assert tally.exchanges == each
    assert each < 10 or set(tally.by_fault) == {fault.name for fault in Fault}
