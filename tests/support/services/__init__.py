"""Real servers for tests: PostgreSQL, MariaDB, Redis and PgBouncer, without root and Docker.

Tests ask for the fixtures of :mod:`support.services.fixtures`; nothing starts before one is asked
for. A server dies with the process that started it, however that ends.
"""
