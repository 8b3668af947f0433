"""A thousand times kill -9 over encode, send, stage, commit and activate: nothing corrupt, lost or sent twice.

``FAULTS_KILLS`` sets how many kills all campaigns have together (1,000 where it is not set); every campaign
prints its seed. ``FAULTS_REPORT`` names a folder for what was counted.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from campaign import Campaign, Tally
from kill_points import Phase
from report import asked_for, keep

CAMPAIGNS = 20
KILLS = asked_for("FAULTS_KILLS", 1000)


def run(folder: Path, seed: int, kills: int) -> Tally:
    print(f"seed {seed}: {kills} kills")
    campaign = Campaign(folder, seed)
    try:
        return campaign.run(kills)
    finally:
        campaign.close()


def check(tally: Tally) -> None:
    assert (tally.corrupt, tally.lost, tally.sent_again) == (0, 0, 0), tally
    assert tally.restarts == tally.kills
    assert tally.hashed > 0


def test_nodes_killed_in_every_phase_lose_nothing(tmp_path: Path) -> None:
    tally = run(tmp_path, 11, 12)
    check(tally)
    assert set(tally.by_phase) == {phase.value for phase in Phase}


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(CAMPAIGNS))
def test_a_thousand_kills(tmp_path: Path, seed: int) -> None:
    kills = -(-KILLS // CAMPAIGNS)
    tally = run(tmp_path, seed, kills)
    keep(f"kills-{seed}", tally.to_json())
    check(tally)
    assert min(tally.by_phase[phase.value] for phase in Phase) >= kills // 10
    assert kills < 20 or tally.resumed > 0, "no transfer went on where it had stopped"
