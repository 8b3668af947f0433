"""The arguments by which operations make lossy versions, and the settings that they mean. Off unless asked for."""

from __future__ import annotations

from pydantic import Field

from aios_node.delta.lossy.settings import LossySettings, Method
from aios_node.engine.errors import BadRequest
from aios_node.node.operations.registry import Args


class LossyArgs(Args):
    """``lossy``: the method; none: exact. ``share``: of the elements that ``top_k`` keeps."""

    lossy: Method | None = None
    share: float | None = Field(None, gt=0, le=1)


def lossy_settings(args: LossyArgs) -> LossySettings | None:
    """The settings that the arguments ask for; None for an exact version. Raises BadRequest for a stray ``share``."""
    if args.share is not None and args.lossy != "top_k":
        raise BadRequest("share says what lossy top_k keeps: give lossy top_k with it")
    if args.lossy is None:
        return None
    return LossySettings(args.lossy) if args.share is None else LossySettings(args.lossy, share=args.share)
