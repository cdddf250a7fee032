# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL 17's parameters: which may be set in a service file, and whether a value is one.

The table is ``pg_settings`` of PostgreSQL 17.12 (Debian 13) without presets and developer options. Units and forms of
values: PostgreSQL documentation, section 19.1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.postgresql.extensions import EXTENSIONS, PREFIXES
from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import choices, nearest, show

# What Patroni or the platform sets, or what would lose data or lock the platform out of the server.
_OWNED = """
    allow_alter_system application_name archive_cleanup_command archive_command archive_library archive_mode
    archive_timeout bonjour bonjour_name client_encoding cluster_name config_file data_directory data_sync_retry
    debug_pretty_print debug_print_parse debug_print_plan debug_print_rewritten default_transaction_read_only
    dynamic_library_path event_source event_triggers exit_on_error extension_destdir external_pid_file fsync
    full_page_writes gss_accept_delegation hba_file hot_standby ident_file jit_provider krb_caseins_users
    krb_server_keyfile listen_addresses local_preload_libraries log_destination log_directory log_file_mode
    log_filename log_line_prefix log_rotation_age log_rotation_size log_timezone log_truncate_on_rotation
    logging_collector output_plugin_libraries password_encryption port primary_conninfo primary_slot_name
    recovery_end_command recovery_init_sync_method recovery_min_apply_delay recovery_target recovery_target_action
    recovery_target_inclusive recovery_target_lsn recovery_target_name recovery_target_time recovery_target_timeline
    recovery_target_xid restart_after_crash restore_command scram_iterations search_path session_preload_libraries
    session_replication_role shared_preload_libraries ssl ssl_ca_file ssl_cert_file ssl_ciphers ssl_crl_dir
    ssl_crl_file ssl_dh_params_file ssl_ecdh_curve ssl_key_file ssl_max_protocol_version ssl_min_protocol_version
    ssl_passphrase_command ssl_passphrase_command_supports_reload ssl_prefer_server_ciphers sync_replication_slots
    synchronized_standby_slots synchronous_standby_names syslog_facility syslog_ident syslog_sequence_numbers
    syslog_split_messages transaction_deferrable transaction_isolation transaction_read_only unix_socket_directories
    unix_socket_group unix_socket_permissions wal_level wal_log_hints wal_sync_method
"""
OWNED = frozenset(_OWNED.split())
# One a line: name, kind or the values of an enumeration, and of numbers the unit, minimum and maximum.
_TABLE = """
DateStyle|text
IntervalStyle|enum|postgres,postgres_verbose,sql_standard,iso_8601
TimeZone|text
array_nulls|bool
authentication_timeout|integer|s|1|600
autovacuum|bool
autovacuum_analyze_scale_factor|real||0|100
autovacuum_analyze_threshold|integer||0|2147483647
autovacuum_freeze_max_age|integer||100000|2000000000
autovacuum_max_workers|integer||1|262143
autovacuum_multixact_freeze_max_age|integer||10000|2000000000
autovacuum_naptime|integer|s|1|2147483
autovacuum_vacuum_cost_delay|real|ms|-1|100
autovacuum_vacuum_cost_limit|integer||-1|10000
autovacuum_vacuum_insert_scale_factor|real||0|100
autovacuum_vacuum_insert_threshold|integer||-1|2147483647
autovacuum_vacuum_scale_factor|real||0|100
autovacuum_vacuum_threshold|integer||0|2147483647
autovacuum_work_mem|integer|kB|-1|2147483647
backend_flush_after|integer|8kB|0|256
backslash_quote|enum|safe_encoding,on,off
bgwriter_delay|integer|ms|10|10000
bgwriter_flush_after|integer|8kB|0|256
bgwriter_lru_maxpages|integer||0|1073741823
bgwriter_lru_multiplier|real||0|10
bytea_output|enum|escape,hex
check_function_bodies|bool
checkpoint_completion_target|real||0|1
checkpoint_flush_after|integer|8kB|0|256
checkpoint_timeout|integer|s|30|86400
checkpoint_warning|integer|s|0|2147483647
client_connection_check_interval|integer|ms|0|2147483647
client_min_messages|enum|debug5,debug4,debug3,debug2,debug1,log,notice,warning,error
commit_delay|integer||0|100000
commit_siblings|integer||0|1000
commit_timestamp_buffers|integer|8kB|0|131072
compute_query_id|enum|auto,regress,on,off
constraint_exclusion|enum|partition,on,off
cpu_index_tuple_cost|real||0|1.79769e+308
cpu_operator_cost|real||0|1.79769e+308
cpu_tuple_cost|real||0|1.79769e+308
createrole_self_grant|text
cursor_tuple_fraction|real||0|1
deadlock_timeout|integer|ms|1|2147483647
default_statistics_target|integer||1|10000
default_table_access_method|text
default_tablespace|text
default_text_search_config|text
default_toast_compression|enum|pglz,lz4
default_transaction_deferrable|bool
default_transaction_isolation|enum|serializable,repeatable read,read committed,read uncommitted
dynamic_shared_memory_type|enum|posix,sysv,mmap
effective_cache_size|integer|8kB|1|2147483647
effective_io_concurrency|integer||0|1000
enable_async_append|bool
enable_bitmapscan|bool
enable_gathermerge|bool
enable_group_by_reordering|bool
enable_hashagg|bool
enable_hashjoin|bool
enable_incremental_sort|bool
enable_indexonlyscan|bool
enable_indexscan|bool
enable_material|bool
enable_memoize|bool
enable_mergejoin|bool
enable_nestloop|bool
enable_parallel_append|bool
enable_parallel_hash|bool
enable_partition_pruning|bool
enable_partitionwise_aggregate|bool
enable_partitionwise_join|bool
enable_presorted_aggregate|bool
enable_seqscan|bool
enable_sort|bool
enable_tidscan|bool
escape_string_warning|bool
extra_float_digits|integer||-15|3
file_extend_method|enum|posix_fallocate,write_zeros
from_collapse_limit|integer||1|2147483647
geqo|bool
geqo_effort|integer||1|10
geqo_generations|integer||0|2147483647
geqo_pool_size|integer||0|2147483647
geqo_seed|real||0|1
geqo_selection_bias|real||1.5|2
geqo_threshold|integer||2|2147483647
gin_fuzzy_search_limit|integer||0|2147483647
gin_pending_list_limit|integer|kB|64|2147483647
hash_mem_multiplier|real||1|1000
hot_standby_feedback|bool
huge_page_size|integer|kB|0|2147483647
huge_pages|enum|off,on,try
icu_validation_level|enum|disabled,debug5,debug4,debug3,debug2,debug1,log,notice,warning,error
idle_in_transaction_session_timeout|integer|ms|0|2147483647
idle_session_timeout|integer|ms|0|2147483647
io_combine_limit|integer|8kB|1|32
jit|bool
jit_above_cost|real||-1|1.79769e+308
jit_inline_above_cost|real||-1|1.79769e+308
jit_optimize_above_cost|real||-1|1.79769e+308
join_collapse_limit|integer||1|2147483647
lc_messages|text
lc_monetary|text
lc_numeric|text
lc_time|text
lo_compat_privileges|bool
lock_timeout|integer|ms|0|2147483647
log_autovacuum_min_duration|integer|ms|-1|2147483647
log_checkpoints|bool
log_connections|bool
log_disconnections|bool
log_duration|bool
log_error_verbosity|enum|terse,default,verbose
log_executor_stats|bool
log_hostname|bool
log_lock_waits|bool
log_min_duration_sample|integer|ms|-1|2147483647
log_min_duration_statement|integer|ms|-1|2147483647
log_min_error_statement|enum|debug5,debug4,debug3,debug2,debug1,info,notice,warning,error,log,fatal,panic
log_min_messages|enum|debug5,debug4,debug3,debug2,debug1,info,notice,warning,error,log,fatal,panic
log_parameter_max_length|integer|B|-1|1073741823
log_parameter_max_length_on_error|integer|B|-1|1073741823
log_parser_stats|bool
log_planner_stats|bool
log_recovery_conflict_waits|bool
log_replication_commands|bool
log_startup_progress_interval|integer|ms|0|2147483647
log_statement|enum|none,ddl,mod,all
log_statement_sample_rate|real||0|1
log_statement_stats|bool
log_temp_files|integer|kB|-1|2147483647
log_transaction_sample_rate|real||0|1
logical_decoding_work_mem|integer|kB|64|2147483647
maintenance_io_concurrency|integer||0|1000
maintenance_work_mem|integer|kB|64|2147483647
max_connections|integer||1|262143
max_files_per_process|integer||64|2147483647
max_locks_per_transaction|integer||10|2147483647
max_logical_replication_workers|integer||0|262143
max_notify_queue_pages|integer||64|2147483647
max_parallel_apply_workers_per_subscription|integer||0|1024
max_parallel_maintenance_workers|integer||0|1024
max_parallel_workers|integer||0|1024
max_parallel_workers_per_gather|integer||0|1024
max_pred_locks_per_page|integer||0|2147483647
max_pred_locks_per_relation|integer||-2147483648|2147483647
max_pred_locks_per_transaction|integer||10|2147483647
max_prepared_transactions|integer||0|262143
max_replication_slots|integer||0|262143
max_slot_wal_keep_size|integer|MB|-1|2147483647
max_stack_depth|integer|kB|100|2147483647
max_standby_archive_delay|integer|ms|-1|2147483647
max_standby_streaming_delay|integer|ms|-1|2147483647
max_sync_workers_per_subscription|integer||0|262143
max_wal_senders|integer||0|262143
max_wal_size|integer|MB|2|2147483647
max_worker_processes|integer||0|262143
min_dynamic_shared_memory|integer|MB|0|2147483647
min_parallel_index_scan_size|integer|8kB|0|715827882
min_parallel_table_scan_size|integer|8kB|0|715827882
min_wal_size|integer|MB|2|2147483647
multixact_member_buffers|integer|8kB|16|131072
multixact_offset_buffers|integer|8kB|16|131072
notify_buffers|integer|8kB|16|131072
parallel_leader_participation|bool
parallel_setup_cost|real||0|1.79769e+308
parallel_tuple_cost|real||0|1.79769e+308
plan_cache_mode|enum|auto,force_generic_plan,force_custom_plan
quote_all_identifiers|bool
random_page_cost|real||0|1.79769e+308
recovery_prefetch|enum|off,on,try
recursive_worktable_factor|real||0.001|1e+06
reserved_connections|integer||0|262143
restrict_nonsystem_relation_kind|text
row_security|bool
seq_page_cost|real||0|1.79769e+308
serializable_buffers|integer|8kB|16|131072
shared_buffers|integer|8kB|16|1073741823
shared_memory_type|enum|sysv,mmap
standard_conforming_strings|bool
statement_timeout|integer|ms|0|2147483647
stats_fetch_consistency|enum|none,cache,snapshot
subtransaction_buffers|integer|8kB|0|131072
summarize_wal|bool
superuser_reserved_connections|integer||0|262143
synchronize_seqscans|bool
synchronous_commit|enum|remote_apply,remote_write,on
tcp_keepalives_count|integer||0|2147483647
tcp_keepalives_idle|integer|s|0|2147483647
tcp_keepalives_interval|integer|s|0|2147483647
tcp_user_timeout|integer|ms|0|2147483647
temp_buffers|integer|8kB|100|1073741823
temp_file_limit|integer|kB|-1|2147483647
temp_tablespaces|text
timezone_abbreviations|text
track_activities|bool
track_activity_query_size|integer|B|100|1048576
track_commit_timestamp|bool
track_counts|bool
track_functions|enum|none,pl,all
track_io_timing|bool
track_wal_io_timing|bool
transaction_buffers|integer|8kB|0|131072
transaction_timeout|integer|ms|0|2147483647
transform_null_equals|bool
update_process_title|bool
vacuum_buffer_usage_limit|integer|kB|0|16777216
vacuum_cost_delay|real|ms|0|100
vacuum_cost_limit|integer||1|10000
vacuum_cost_page_dirty|integer||0|10000
vacuum_cost_page_hit|integer||0|10000
vacuum_cost_page_miss|integer||0|10000
vacuum_failsafe_age|integer||0|2100000000
vacuum_freeze_min_age|integer||0|1000000000
vacuum_freeze_table_age|integer||0|2000000000
vacuum_multixact_failsafe_age|integer||0|2100000000
vacuum_multixact_freeze_min_age|integer||0|1000000000
vacuum_multixact_freeze_table_age|integer||0|2000000000
wal_buffers|integer|8kB|-1|262143
wal_compression|enum|pglz,lz4,zstd,on,off
wal_decode_buffer_size|integer|B|65536|1073741823
wal_init_zero|bool
wal_keep_size|integer|MB|0|2147483647
wal_receiver_create_temp_slot|bool
wal_receiver_status_interval|integer|s|0|2147483
wal_receiver_timeout|integer|ms|0|2147483647
wal_recycle|bool
wal_retrieve_retry_interval|integer|ms|1|2147483647
wal_sender_timeout|integer|ms|0|2147483647
wal_skip_threshold|integer|kB|0|2147483647
wal_summary_keep_time|integer|min|0|35791394
wal_writer_delay|integer|ms|1|10000
wal_writer_flush_after|integer|8kB|0|2147483647
work_mem|integer|kB|64|2147483647
xmlbinary|enum|base64,hex
xmloption|enum|content,document
"""
_BOOLEANS = {**dict.fromkeys(("on", "true", "yes", "1"), "on"), **dict.fromkeys(("off", "false", "no", "0"), "off")}
_NUMBER = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?) ?([A-Za-z]*)\Z")
_MEMORY: dict[str, float] = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_TIME: dict[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Parameter:
    """One parameter: ``kind`` is bool, integer, real, enum or text; ``unit`` is what a bare number means."""

    name: str
    kind: str
    values: tuple[str, ...] = ()
    unit: str = ""
    low: float = 0
    high: float = 0


@lru_cache(maxsize=1)
def table() -> dict[str, Parameter]:
    """Parameters that may be set, by their names in lower case."""
    result = {}
    for line in _TABLE.split("\n")[1:-1]:
        name, kind, *rest = line.split("|")
        if kind == "enum":
            found = Parameter(name, kind, tuple(rest[0].split(",")))
        elif rest:
            found = Parameter(name, kind, (), rest[0], float(rest[1]), float(rest[2]))
        else:
            found = Parameter(name, kind)
        result[name.lower()] = found
    return result


def text_of(value: Any) -> str:
    """A value as postgresql.conf has it; true and false are on and off."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def normalised(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings with PostgreSQL's own spelling of their names, values as text, sorted by name."""
    found = {}
    for key, value in settings.items():
        known = table().get(key.lower())
        found[known.name if known else key.lower()] = text_of(value)
    return dict(sorted(found.items()))


def problem(key: str, value: Any, extensions: Iterable[str]) -> tuple[str, str | None, str] | None:
    """Why a setting is refused, as (what, value, allowed), or None. ``extensions``: those that the database has."""
    name = key.lower()
    if "." in name:
        return _foreign(name, extensions)
    if name in OWNED:
        return (
            "a parameter that the platform sets itself",
            None,
            "any other parameter; this one is derived or protected",
        )
    known = table().get(name)
    if known is None:
        near = nearest(name, table())
        text = "unknown parameter" + (f', did you mean "{near}"?' if near else "")
        return text, show(key), "a parameter of PostgreSQL 17 that may be set for a whole cluster"
    allowed = _refusal(known, value)
    return ("not a value of this parameter", show(value), allowed) if allowed else None


def _foreign(name: str, extensions: Iterable[str]) -> tuple[str, str | None, str] | None:
    prefix = name.split(".", maxsplit=1)[0]
    owner = PREFIXES.get(prefix)
    if owner is None:
        near = nearest(prefix, PREFIXES)
        text = "a parameter of no known extension" + (f', did you mean "{near}."?' if near else "")
        return text, show(name), choices([f"{one}.*" for one in sorted(PREFIXES)])
    if owner not in extensions and not EXTENSIONS[owner].always:
        return (
            "a parameter of an extension that is not declared",
            show(name),
            f"extensions with {owner}, or without this",
        )
    if name in {key for extension in EXTENSIONS.values() for key, _value in extension.settings}:
        return "a parameter that the platform sets itself", None, "any other parameter; this one is derived"
    return None


def _refusal(known: Parameter, value: Any) -> str:
    """What is allowed instead of a value; empty if it is fine."""
    text = text_of(value).strip()
    if known.kind == "text":
        return ""
    if known.kind == "bool":
        return "" if text.lower() in _BOOLEANS else "on or off"
    if known.kind == "enum":
        words = {word.lower() for word in known.values}
        return "" if text.lower() in words or _BOOLEANS.get(text.lower()) in words else choices(known.values)
    return "" if _fits(known, text) else _range(known)


def _range(known: Parameter) -> str:
    low, high = (f"{one:.0f}" if known.kind == "integer" else f"{one:g}" for one in (known.low, known.high))
    unit = known.unit.lstrip("0123456789")
    forms = _units(unit)
    hint = f" (a bare number counts {known.unit}), or with a unit: {choices(forms)}" if forms else ""
    return f"{'a whole number' if known.kind == 'integer' else 'a number'}, {low} to {high}{hint}"


def _units(unit: str) -> dict[str, float]:
    return _MEMORY if unit in _MEMORY else _TIME if unit in _TIME else {}


def _fits(known: Parameter, text: str) -> bool:
    match = _NUMBER.match(text)
    if not match:
        return False
    number, given = float(match.group(1)), match.group(2)
    if given:
        count = re.match(r"[0-9]*", known.unit)
        base = known.unit[count.end() :] if count else known.unit
        forms = _units(base)
        if given not in forms:
            return False
        number *= forms[given] / (forms[base] * int((count.group() if count else "") or 1))
    # PostgreSQL rounds a fraction of an integer to the nearest whole number.
    return known.low <= (round(number) if known.kind == "integer" else number) <= known.high
