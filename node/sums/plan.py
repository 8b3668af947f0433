"""What a coordinator proposes to its members: on what to train, how to clip and to noise, who takes part.

Everything that decides what a sum means goes into its terms' subject, so that members who were told different things
sign different terms, and no sum comes of it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.delta.privacy.contribution import NoisySum
from aios_node.delta.privacy.layout import Layout
from aios_node.engine.weights.names import canonical_json

Hex = Field(pattern=r"^[0-9a-f]{64}$")


class SumPlan(BaseModel):
    """One sum. ``honest``: members whose noise is counted on; ``layout``: digest of names and shapes of the vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    base: str = Hex
    session: str = Hex
    layout: str = Hex
    length: int = Field(ge=1)
    members: tuple[str, ...]
    threshold: int
    honest: int
    clip_norm: float = Field(gt=0, le=1e9)
    noise_multiplier: float = Field(ge=0, le=1e4)
    steps: int | None = Field(default=None, ge=1, le=100_000)

    @property
    def terms(self) -> Terms:
        """The terms that everybody signs. Raises BadConfig."""
        subject = self.model_dump(exclude={"session"}) | {"members": sorted(self.members)}
        digest = hashlib.sha256(canonical_json(subject)).hexdigest()
        return Terms(self.session, digest, self.members, self.threshold, self.length)

    @property
    def noisy(self) -> NoisySum:
        """How members clip and noise. Raises BadConfig."""
        return NoisySum(self.clip_norm, self.noise_multiplier, len(self.members), self.honest)

    def fits(self, layout: Layout) -> bool:
        """Whether this is the vector that is meant."""
        return (layout.digest, layout.length) == (self.layout, self.length)

    def said(self) -> dict[str, Any]:
        """As it travels."""
        return self.model_dump(mode="json")
