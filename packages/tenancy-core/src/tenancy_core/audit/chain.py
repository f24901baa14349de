"""The links of a tenant's log: how an event is sealed, and whether a stored one still fits.

The seal covers the digest of the personal fields and not these themselves. Erasing them, and the
salt without which a digest of a name could be guessed back, leaves every seal as it was.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tenancy_core.audit.text import canonical

if TYPE_CHECKING:
    from tenancy_core.contract import AuditEvent, AuditHead
    from tenancy_core.crypto import Signer

__all__ = ["flaw", "sealed"]

_SALT_BYTES: Final = 16

_DOMAIN: Final = b"tenancy.audit/1"
"""Of what is sealed, and in which format: a seal of another format never holds for this one."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def sealed(event: AuditEvent, head: AuditHead, signer: Signer) -> AuditEvent:
    """Return the event as the next one behind ``head``, with salt, digest and seal."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = _digest(event, salt)
    salted = replace(event, sequence=head.sequence + 1, salt=salt, digest=digest)
    return replace(salted, seal=signer.sign(*_parts(salted, head.seal)))


def flaw(event: AuditEvent, head: AuditHead, signer: Signer, *, erased: bool) -> str | None:
    """Say what is wrong with a stored event; None if nothing is.

    Args:
        event: As the store returned it; whoever can write there may have put anything into it.
        head: The event before it, which was found to be right.
        signer: Has every key that may have sealed it.
        erased: Whether the tenant is, so that personal fields may be missing.
    """
    if event.sequence != head.sequence + 1:
        return "is missing"
    try:
        fits = signer.verify(event.seal, *_parts(event, head.seal))
        salt = event.salt
        known = salt is None or hmac.compare_digest(_digest(event, salt), event.digest)
    except (TypeError, ValueError, AttributeError, RecursionError, ArithmeticError):
        return "holds what was never written there"
    if not fits:
        return (
            "does not fit its seal: it was changed, moved or put there, or it was sealed with a "
            "key that is not among TENANCY_SIGNING_KEYS"
        )
    if not known:
        return "was changed in its actor, its reason or its personal fields"
    return None if event.salt is not None else _flaw_of_the_redacted(event, erased=erased)


def _flaw_of_the_redacted(event: AuditEvent, *, erased: bool) -> str | None:
    if not erased:
        return "lost its salt, and the tenant is not erased"
    if event.actor is not None or event.reason is not None or event.personal:
        return "has an actor, a reason or personal fields that nothing vouches for"
    return None


def _digest(event: AuditEvent, salt: bytes) -> bytes:
    personal = canonical([event.actor, event.reason, event.personal])
    return hashlib.sha256(salt + personal).digest()


def _parts(event: AuditEvent, previous: bytes) -> tuple[bytes, ...]:
    """Return what is sealed. The signer puts each part's length in front of it."""
    return (
        _DOMAIN,
        event.tenant_id.bytes,
        b"%d" % event.sequence,
        event.action.encode("ascii"),
        b"%d" % ((event.occurred_at - _EPOCH) // _MICROSECOND),
        canonical(event.details),
        event.digest,
        previous,
    )
