"""Names and values in SQL text that no driver quotes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenancy_postgres.quoting import quote_identifier, quote_literal

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase

# What PostgreSQL's UTF8 has no form for.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
AWKWARD = ["'", "''", "\\", "\\'", '"', "$$", "%s", ":x", "E'", "\n", "';--", "\\\\'"]


def test_I5_the_server_reads_back_what_was_quoted(postgres_database: PostgresDatabase) -> None:
    with asyncio.Runner() as runner:
        context = postgres_database.connection()
        connection = runner.run(context.__aenter__())

        async def read(value: str) -> list[str]:
            found = []
            for conforming in ("on", "off"):
                await connection.execute(f"SET standard_conforming_strings = {conforming}")
                found.append(await connection.fetchval(f"SELECT {quote_literal(value)}"))
            if value and len(value.encode()) < 64:
                row = await connection.fetchrow(f"SELECT 1 AS {quote_identifier(value)}")
                found.append(*row.keys())
            return found

        @settings(suppress_health_check=[HealthCheck.too_slow])
        @given(st.one_of(texts, st.lists(st.sampled_from(AWKWARD)).map("".join)))
        def check(value: str) -> None:
            assert set(runner.run(read(value))) == {value}

        try:
            check()
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize("value", ["a\0b", "\0"])
def test_a_NUL_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="NUL"):
        quote_literal(value)
    with pytest.raises(ValueError, match="NUL"):
        quote_identifier(value)


def test_a_name_is_not_empty() -> None:
    with pytest.raises(ValueError, match="not empty"):
        quote_identifier("")
