"""The store behind its caches: what a request asks."""

from tenancy_core._directory.codec import TenantCodec
from tenancy_core._directory.directory import Directory
from tenancy_core._directory.follower import ChangeFollower
from tenancy_core._directory.l1 import Entry, L1Cache

__all__ = ["ChangeFollower", "Directory", "Entry", "L1Cache", "TenantCodec"]
