"""The store behind its caches: what a request asks."""

from tenancy_core._directory.announcer import ChangeAnnouncer
from tenancy_core._directory.codec import TenantCodec
from tenancy_core._directory.directory import Directory
from tenancy_core._directory.follower import ChangeFollower
from tenancy_core._directory.l1 import Entry, L1Cache
from tenancy_core._directory.listener import ChangeListener

__all__ = [
    "ChangeAnnouncer",
    "ChangeFollower",
    "ChangeListener",
    "Directory",
    "Entry",
    "L1Cache",
    "TenantCodec",
]
