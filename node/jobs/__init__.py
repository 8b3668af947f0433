"""What worker processes do: each job is one function over paths, free of the node's state.

Every job gets a frozen dataclass and a progress callback, and returns something small. Version folders are
built in workspaces of the store, which verifies and adopts them afterwards. Heavy imports happen in the
worker, inside the functions.
"""

from __future__ import annotations

from aios_node.node.jobs.adapt import AdaptJob, adapt_encoder, document_line
from aios_node.node.jobs.convert import ExportJob, ImportJob, export, import_model
from aios_node.node.jobs.inspect import DiffJob, diff
from aios_node.node.jobs.lossy import LossyImportJob, LossyPlan, import_lossy
from aios_node.node.jobs.merge import MergeJob, merge_versions
from aios_node.node.jobs.packages import (
    ApplyJob,
    PackageJob,
    RebuildJob,
    apply_package,
    build_package,
    rebuild_version,
)
from aios_node.node.jobs.quantize import QuantizeJob, quantize
from aios_node.node.jobs.recipes import RecipeOptions, read_recipe
from aios_node.node.jobs.together import ContributeJob, LayoutJob, SumJob, apply_sum, contribute, trained_layout
from aios_node.node.jobs.validate import CompareJob, compare, failures

__all__ = [
    "AdaptJob",
    "ApplyJob",
    "CompareJob",
    "ContributeJob",
    "DiffJob",
    "ExportJob",
    "ImportJob",
    "LayoutJob",
    "LossyImportJob",
    "LossyPlan",
    "MergeJob",
    "PackageJob",
    "QuantizeJob",
    "RebuildJob",
    "RecipeOptions",
    "SumJob",
    "adapt_encoder",
    "apply_package",
    "apply_sum",
    "build_package",
    "compare",
    "contribute",
    "diff",
    "document_line",
    "export",
    "failures",
    "import_lossy",
    "import_model",
    "merge_versions",
    "quantize",
    "read_recipe",
    "rebuild_version",
    "trained_layout",
]
