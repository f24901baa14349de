"""The settings: every flat ``TENANCY_*`` name, validated once, at start-up."""

from tenancy_core.config._environment import Environment, is_reserved, near_miss
from tenancy_core.config._jwt import ANY, JwtIssuer
from tenancy_core.config._keys import INSTANCE_KEY
from tenancy_core.config._model import Plan, TenancyConfig, check_excluded_path, secret_settings

__all__ = [
    "ANY",
    "INSTANCE_KEY",
    "Environment",
    "JwtIssuer",
    "Plan",
    "TenancyConfig",
    "check_excluded_path",
    "is_reserved",
    "near_miss",
    "secret_settings",
]
