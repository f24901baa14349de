"""What a handler can leave behind on a connection to PostgreSQL, and how to look for it."""

LEAVINGS = (
    ("SET search_path = public", "SELECT pg_catalog.current_setting('search_path')"),
    ("SET statement_timeout = 12345", "SELECT pg_catalog.current_setting('statement_timeout')"),
    (
        "SET app.remains = 'behind'",
        "SELECT nullif(pg_catalog.current_setting('app.remains', true), '')",
    ),
    ("CREATE TEMPORARY TABLE left_behind (id integer)", "SELECT id FROM left_behind"),
    (
        "SELECT pg_catalog.pg_advisory_lock(815)",
        "SELECT objid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objid = 815",
    ),
    ("LISTEN left_behind", "SELECT * FROM pg_catalog.pg_listening_channels()"),
    (
        "DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1",
        "SELECT name FROM pg_catalog.pg_cursors WHERE name = 'left_behind'",
    ),
)
