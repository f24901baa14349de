"""Keys and what is made with them: signatures, and tenants' secrets that only their key opens.

Importing this room loads nothing but the standard library. ``cryptography`` (extra ``crypto``) is
loaded when a :class:`TenantCipher` is made.
"""

from tenancy_core.crypto.encryption import FieldCipher, TenantCipher
from tenancy_core.crypto.secrets import RESERVED, TenantSecrets
from tenancy_core.crypto.sensitive import Sensitive, reveal_metadata, seal_metadata
from tenancy_core.crypto.signing import Signer, SigningKeys

__all__ = [
    "RESERVED",
    "FieldCipher",
    "Sensitive",
    "Signer",
    "SigningKeys",
    "TenantCipher",
    "TenantSecrets",
    "reveal_metadata",
    "seal_metadata",
]
