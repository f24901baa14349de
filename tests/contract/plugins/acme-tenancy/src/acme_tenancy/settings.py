"""The section ``TENANCY_APIKEY_*``."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

__all__ = ["ApiKeySettings"]


class ApiKeySettings(BaseModel):
    """Settings of this package.

    Attributes:
        keys: JSON: API key → identifier of its tenant.
        header: The header that carries the key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    keys: SecretStr = Field(default=SecretStr("{}"))
    header: str = "X-API-Key"

    @field_validator("keys")
    @classmethod
    def _check_keys(cls, value: SecretStr) -> SecretStr:
        try:
            keys = json.loads(value.get_secret_value())
        except ValueError:
            raise ValueError("is no JSON object") from None
        if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
            raise ValueError("is no JSON object of strings")
        return value
