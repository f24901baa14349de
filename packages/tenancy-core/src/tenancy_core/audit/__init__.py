"""The audit log: what was done to and as a tenant, in a chain that shows what was changed."""

from tenancy_core.audit.log import AuditLog
from tenancy_core.audit.refusals import RefusalBuffer
from tenancy_core.audit.trail import AuditTrail
from tenancy_core.audit.verification import ERASED, AuditReport
from tenancy_core.audit.worker import AuditWorker

__all__ = ["ERASED", "AuditLog", "AuditReport", "AuditTrail", "AuditWorker", "RefusalBuffer"]
