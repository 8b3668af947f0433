"""What opens a sum: revealed shares, the secrets they rebuild, and the masks that then come off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations, islice
from typing import Final

from aios_node.delta.privacy.aggregation import keys, shamir
from aios_node.delta.privacy.aggregation.masks import ADD, TAKE, apply_mask
from aios_node.delta.privacy.aggregation.messages import Keys, Reveal
from aios_node.delta.privacy.aggregation.participant import pair_sign
from aios_node.delta.privacy.aggregation.ring import Residues
from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.engine.errors import Corrupt

_TRIES: Final = 64
"""Choices of shares that are tried when some are wrong; every secret is compared with what its owner promised."""


class Opening:
    """Shares by the owner of their secret, as they come."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._seeds: dict[str, dict[int, bytes]] = {}
        self._mask_keys: dict[str, dict[int, bytes]] = {}

    def add(self, reveal: Reveal) -> None:
        """Keep the shares of one participant."""
        place = self._terms.place(reveal.sender)
        for found, shares in ((self._seeds, reveal.seeds), (self._mask_keys, reveal.mask_keys)):
            for owner, share in shares:
                found.setdefault(owner, {})[place] = share

    def unmask(
        self, total: Residues, public: Mapping[str, Keys], members: tuple[str, ...], survivors: tuple[str, ...]
    ) -> None:
        """Take all masks off the sum of the survivors' vectors, in place.

        Rebuilds everything before it changes anything. Raises Corrupt where the shares of a secret are too few or
        wrong.
        """
        seeds = {owner: self._seed(public[owner]) for owner in survivors}
        gone = {owner: self._mask_key(public[owner]) for owner in members if owner not in survivors}
        for seed in seeds.values():
            apply_mask(total, seed, TAKE)
        for owner, private in gone.items():
            for other in survivors:
                seed = keys.mask_seed(self._terms.digest, private, bytes.fromhex(public[other].mask_key))
                apply_mask(total, seed, TAKE if pair_sign(other, owner) == ADD else ADD)

    def _seed(self, owner: Keys) -> bytes:
        def promised(seed: bytes) -> bool:
            return keys.commitment(self._terms.digest, owner.sender, seed) == owner.commitment

        return self._rebuilt(owner.sender, self._seeds, promised)

    def _mask_key(self, owner: Keys) -> bytes:
        return self._rebuilt(
            owner.sender, self._mask_keys, lambda private: keys.public_half(private).hex() == owner.mask_key
        )

    def _rebuilt(
        self, owner: str, found: Mapping[str, Mapping[int, bytes]], promised: Callable[[bytes], bool]
    ) -> bytes:
        shares = found.get(owner, {})
        for places in islice(combinations(sorted(shares), self._terms.threshold), _TRIES):
            try:
                secret = shamir.combine({place: shares[place] for place in places})
            except Corrupt:
                continue
            if promised(secret):
                return secret
        raise Corrupt(f"{len(shares)} shares of a secret of {owner[:12]} do not give it back: the sum stays closed")
