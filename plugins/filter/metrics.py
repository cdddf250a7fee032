# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of roles metrics and node_exporter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import prometheus


def _settings(given: Mapping[str, Any]) -> prometheus.Settings:
    return prometheus.Settings(**{name: value for name, value in given.items() if value != ""})


def metrics_configuration(services: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        # A copy without shared parts: some dumpers write those as anchors and aliases.
        offered = {name: str((one.get("metrics") or {}).get("path") or "") for name, one in services.items()}
        paths = {name: path for name, path in offered.items() if path}
        return json.loads(json.dumps(prometheus.configuration(sorted(services), _settings(settings), paths)))
    except prometheus.PrometheusError as error:
        raise AnsibleFilterError(str(error)) from error


def metrics_rules(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return prometheus.rules(_settings(settings))
    except prometheus.PrometheusError as error:
        raise AnsibleFilterError(str(error)) from error


def metrics_web(tls: str, allowed: Sequence[str]) -> dict[str, Any]:
    try:
        return prometheus.web_configuration(tls, allowed)
    except prometheus.PrometheusError as error:
        raise AnsibleFilterError(str(error)) from error


def metrics_seconds(duration: str, name: str = "duration") -> float:
    try:
        return prometheus.duration_seconds(str(duration), name)
    except prometheus.PrometheusError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "metrics_configuration": metrics_configuration,
            "metrics_rules": metrics_rules,
            "metrics_seconds": metrics_seconds,
            "metrics_web": metrics_web,
        }
