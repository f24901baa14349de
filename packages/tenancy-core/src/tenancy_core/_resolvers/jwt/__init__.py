"""The tenant is named and proven by a signed token.

The only room that knows PyJWT, and of PyJWT only the algorithms. A token is taken apart here, by
stricter rules than PyJWT's: one JSON reader for the header and the claims, which refuses what two
readers could read differently.
"""

from tenancy_core._resolvers.jwt.resolver import JwtResolver

__all__ = ["JwtResolver"]
