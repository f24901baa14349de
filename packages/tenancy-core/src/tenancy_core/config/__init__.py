"""The settings: every flat ``TENANCY_*`` name, validated once, at start-up."""

from tenancy_core.config._environment import Environment
from tenancy_core.config._model import Plan, TenancyConfig, check_excluded_path

__all__ = ["Environment", "Plan", "TenancyConfig", "check_excluded_path"]
