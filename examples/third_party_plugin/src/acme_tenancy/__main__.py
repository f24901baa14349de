"""Says what to set for an API key, which it reads from standard input.

Usage: ``python -m acme_tenancy TENANT < file-with-the-key``
"""

from __future__ import annotations

import json
import sys

from acme_tenancy.resolver import key_digest
from acme_tenancy.settings import ApiKey, ApiKeySettings
from tenancy_core import TenancyConfig


def main() -> None:
    """Print the entry of ``TENANCY_ACME_APIKEY_KEYS``."""
    settings = TenancyConfig.from_env().section("acme_apikey", ApiKeySettings)
    key = sys.stdin.readline().strip()
    digest = key_digest(settings.pepper.get_secret_value().encode(), key)
    known = ApiKey(tenant=sys.argv[1], digest=digest)
    print(json.dumps({key.partition(".")[0]: known.model_dump()}))


if __name__ == "__main__":
    main()
