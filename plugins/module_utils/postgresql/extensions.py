# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extensions that a service may ask for: the Debian 13 package, the library to preload, and what they need set.

Names are those of CREATE EXTENSION; all of them are in Debian 13 (trixie) main for PostgreSQL 17.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAJOR = 17


class ExtensionError(Exception):
    """An extension that is not known here."""


@dataclass(frozen=True)
class Extension:
    """One extension. ``packages``: without ``postgresql-<major>-``, none: a part of the server's own package.

    ``library``: for shared_preload_libraries. ``create``: whether there is anything to create. ``prefix``: of its
    parameters. ``settings``: parameters it needs; ``{database}`` and ``{owner}`` are filled in. ``defaults``: those
    that a service may set otherwise. ``always``: each database has it.
    """

    packages: tuple[str, ...] = ()
    library: str = ""
    create: bool = True
    requires: tuple[str, ...] = ()
    prefix: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    defaults: tuple[tuple[str, str], ...] = ()
    always: bool = False


# PostgreSQL documentation, appendix F. Left out: pg_surgery and what only harms.
_CONTRIB = """
    amcheck autoinc bloom btree_gin btree_gist citext cube dblink dict_int dict_xsyn file_fdw fuzzystrmatch hstore
    insert_username intagg intarray isn lo ltree moddatetime pageinspect pg_buffercache pg_freespacemap pg_prewarm
    pg_trgm pg_visibility pg_walinspect pgcrypto pgrowlocks pgstattuple postgres_fdw refint seg sslinfo tablefunc tcn
    tsm_system_rows tsm_system_time unaccent uuid-ossp xml2
"""
_POSTGIS = ("postgis-3", "postgis-3-scripts")

EXTENSIONS: dict[str, Extension] = {
    **{name: Extension() for name in _CONTRIB.split()},
    # Plans of slow statements without the values in them: a log is no place for those.
    "auto_explain": Extension(
        library="auto_explain",
        create=False,
        prefix="auto_explain",
        defaults=(("auto_explain.log_min_duration", "1s"), ("auto_explain.log_parameter_max_length", "0")),
        always=True,
    ),
    "pg_stat_statements": Extension(library="pg_stat_statements", prefix="pg_stat_statements", always=True),
    "earthdistance": Extension(requires=("cube",)),
    "address_standardizer": Extension(_POSTGIS),
    "address_standardizer_data_us": Extension(_POSTGIS),
    "age": Extension(("age",), library="age"),
    "credcheck": Extension(("credcheck",), library="credcheck", prefix="credcheck"),
    "extra_window_functions": Extension(("extra-window-functions",)),
    "first_last_agg": Extension(("first-last-agg",)),
    "h3": Extension(("h3",)),
    "h3_postgis": Extension(("h3", *_POSTGIS), requires=("h3", "postgis", "postgis_raster")),
    "hll": Extension(("hll",), prefix="hll"),
    "http": Extension(("http",), prefix="http"),
    "hypopg": Extension(("hypopg",), prefix="hypopg"),
    "icu_ext": Extension(("icu-ext",), prefix="icu_ext"),
    "ip4r": Extension(("ip4r",)),
    "jsquery": Extension(("jsquery",)),
    "numeral": Extension(("numeral",)),
    "orafce": Extension(("orafce",), prefix="orafce"),
    "periods": Extension(("periods",), requires=("btree_gist",)),
    # Its workers connect by themselves instead of through a line of pg_hba.conf.
    "pg_cron": Extension(
        ("cron",),
        library="pg_cron",
        prefix="cron",
        settings=(("cron.database_name", "{database}"), ("cron.use_background_workers", "on")),
    ),
    "pg_hint_plan": Extension(("pg-hint-plan",), library="pg_hint_plan", prefix="pg_hint_plan"),
    "pg_partman": Extension(
        ("partman",),
        library="pg_partman_bgw",
        prefix="pg_partman_bgw",
        settings=(("pg_partman_bgw.dbname", "{database}"), ("pg_partman_bgw.role", "{owner}")),
    ),
    "pg_qualstats": Extension(("pg-qualstats",), library="pg_qualstats", prefix="pg_qualstats"),
    "pg_repack": Extension(("repack",)),
    "pg_show_plans": Extension(("show-plans",), library="pg_show_plans", prefix="pg_show_plans"),
    "pg_similarity": Extension(("similarity",), prefix="pg_similarity"),
    "pg_squeeze": Extension(("squeeze",), library="pg_squeeze", prefix="squeeze"),
    "pg_stat_kcache": Extension(
        ("pg-stat-kcache",), library="pg_stat_kcache", requires=("pg_stat_statements",), prefix="pg_stat_kcache"
    ),
    "pg_wait_sampling": Extension(("pg-wait-sampling",), library="pg_wait_sampling", prefix="pg_wait_sampling"),
    "pgaudit": Extension(("pgaudit",), library="pgaudit", prefix="pgaudit"),
    "pgrouting": Extension(("pgrouting", "pgrouting-scripts", *_POSTGIS), requires=("postgis",)),
    "pgtap": Extension(("pgtap",)),
    "pldbgapi": Extension(("pldebugger",), library="plugin_debugger"),
    "plpgsql_check": Extension(("plpgsql-check",), library="plpgsql_check", prefix="plpgsql_check"),
    "postgis": Extension(_POSTGIS, prefix="postgis"),
    "postgis_raster": Extension(_POSTGIS, requires=("postgis",)),
    "postgis_sfcgal": Extension(_POSTGIS, requires=("postgis",)),
    "postgis_tiger_geocoder": Extension(_POSTGIS, requires=("fuzzystrmatch", "postgis")),
    "postgis_topology": Extension(_POSTGIS, requires=("postgis",)),
    "prefix": Extension(("prefix",)),
    "roaringbitmap": Extension(("roaringbitmap",)),
    "rum": Extension(("rum",)),
    "semver": Extension(("semver",)),
    "set_user": Extension(("set-user",), library="set_user", prefix="set_user"),
    "tdigest": Extension(("tdigest",)),
    "timescaledb": Extension(("timescaledb",), library="timescaledb", prefix="timescaledb"),
    "toastinfo": Extension(("toastinfo",)),
    "unit": Extension(("unit",)),
    "vector": Extension(("pgvector",)),
}
ALWAYS = tuple(sorted((name for name, one in EXTENSIONS.items() if one.always), reverse=True))
PREFIXES = {one.prefix: name for name, one in EXTENSIONS.items() if one.prefix}


def _known(names: Iterable[str]) -> list[str]:
    """The names with those that are always there and those that they require, each after what it requires."""
    found: list[str] = []

    def add(name: str) -> None:
        if name in found:
            return
        if name not in EXTENSIONS:
            raise ExtensionError(f"unknown extension {name!r}; known are {', '.join(sorted(EXTENSIONS))}")
        for other in EXTENSIONS[name].requires:
            add(other)
        found.append(name)

    for name in (*ALWAYS, *sorted(names)):
        add(name)
    return found


def created(names: Iterable[str]) -> list[str]:
    """What CREATE EXTENSION is run for, in this order: pg_stat_statements, then ``names`` and what they require.

    Unknown names are left out here: the description's rules report them.
    """
    known = _known(name for name in names if name in EXTENSIONS)
    return [name for name in known if EXTENSIONS[name].create]


def libraries(names: Iterable[str]) -> list[str]:
    """shared_preload_libraries of a cluster. pg_stat_statements comes first: others hook in behind it."""
    return [EXTENSIONS[name].library for name in _known(names) if EXTENSIONS[name].library]


def packages(names: Iterable[str], major: int = MAJOR) -> list[str]:
    """Debian packages of extensions beyond the server's own, sorted."""
    return sorted({f"postgresql-{major}-{part}" for name in _known(names) for part in EXTENSIONS[name].packages})


def defaults(names: Iterable[str]) -> dict[str, str]:
    """Parameters of extensions that a service may set otherwise."""
    return dict(sorted(pair for name in _known(names) for pair in EXTENSIONS[name].defaults))


def parameters(names: Iterable[str], database: str) -> dict[str, str]:
    """Parameters that the extensions of a database need."""
    values = {"database": database, "owner": f"{database}_owner"}
    found = {key: value.format(**values) for name in _known(names) for key, value in EXTENSIONS[name].settings}
    return dict(sorted(found.items()))
