# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters: names, passwords, and errors that Ansible shows as one sentence."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.filter.database import FilterModule

FILTERS = FilterModule().filters()


def test_a_password_is_the_hmac_that_the_design_names():
    wanted = hmac.new(b"secret", b"database/orders/replicator", hashlib.sha256).hexdigest()
    assert FILTERS["database_password"]("secret", "orders", "replicator") == wanted
    assert FILTERS["database_password"]("secret", "orders", "rewind") != wanted


@pytest.mark.parametrize("secret", ["", None, {}, [], True])
def test_no_password_from_no_secret(secret):
    with pytest.raises(AnsibleFilterError, match=r"the secret is empty, set causeway_secrets.database"):
        FILTERS["database_password"](secret, "orders", "rewind")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("database_packages", (["nope"],), "database_packages: unknown extension 'nope'"),
        ("database_hba", ({"database": "x"},), "database_hba: the key members is missing"),
        ("database_tuning", (0, 1, 100), "database_tuning: memory: 0 is not a number"),
    ],
)
def test_errors_name_the_filter(name, arguments, words):
    with pytest.raises(AnsibleFilterError, match=words):
        FILTERS[name](*arguments)
