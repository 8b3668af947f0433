"""How updates are made small: by which method, and how finely. Pure values, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from aios_node.engine.errors import BadRequest

Method = Literal["top_k", "int8", "int4", "sign"]
METHODS: Final[tuple[str, ...]] = get_args(Method)
GROUPS: Final[Mapping[str, int]] = {"top_k": 4096, "int8": 128, "int4": 64, "sign": 512}
"""Elements that share a scale, where nobody says otherwise."""

RECIPE_KEY: Final = "update"
"""Where a recipe says how its update was made small; ``lossy: true`` stands beside it."""


@dataclass(frozen=True)
class LossySettings:
    """``share``: of the elements that top_k keeps. ``group``: elements per scale; 0: the method's own number.

    Tensors of fewer than ``least`` elements are sent exactly. Raises BadRequest for what cannot be.
    """

    method: Method
    share: float = 0.01
    group: int = 0
    least: int = 1024

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadRequest(f"there is no lossy method {self.method!r:.40}: there are {', '.join(METHODS)}")
        if not 0 < self.share <= 1:
            raise BadRequest(f"top_k cannot keep {self.share} of the elements: give a share above 0, at most 1")
        if not 0 <= self.group < 2**31 or self.least < 0:
            raise BadRequest(f"groups of {self.group}, tensors of at least {self.least}: neither may be negative")

    @classmethod
    def of(cls, method: str, **settings: Any) -> LossySettings:
        """Settings for a method by name."""
        return cls(cast("Method", method), **settings)

    @property
    def size(self) -> int:
        """Elements per scale."""
        return self.group or GROUPS[self.method]

    def to_json(self) -> dict[str, Any]:
        """What a recipe says of it."""
        share = {"share": self.share} if self.method == "top_k" else {}
        return {"method": self.method, **share, "group": self.size, "least": self.least}

    def recipe(self, exact: Mapping[str, Any] | None) -> dict[str, Any]:
        """The recipe of a lossy version, from that of the exact one."""
        return {**(exact or {}), "lossy": True, RECIPE_KEY: self.to_json()}
