"""The ASGI middleware: resolve, look up, admit, bind, and refuse in one format."""

from tenancy_core.asgi.middleware import TenancyMiddleware
from tenancy_core.asgi.openapi import describe_tenant
from tenancy_core.asgi.paths import ExcludedPaths
from tenancy_core.asgi.refusals import ANSWERED, Refusal, answer, close_code, render

__all__ = [
    "ANSWERED",
    "ExcludedPaths",
    "Refusal",
    "TenancyMiddleware",
    "answer",
    "close_code",
    "describe_tenant",
    "render",
]
