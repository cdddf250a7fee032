# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module against a real SeaweedFS. The tests build on each other, in this order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import s3

Module = Callable[..., dict[str, Any]]
LOCKED = {"versioning": True, "noncurrent_days": 14, "multipart_days": 7, "lock_mode": "governance", "lock_days": 3}


def four_steps(module: Module, *arguments: Any, **options: Any) -> list[bool | None]:
    return [module(*arguments, check=check, **options).get("changed") for check in (True, False, True, False)]


def test_a_bucket_is_made_once(module: Module) -> None:
    assert four_steps(module, "plain") == [True, True, False, False]
    assert module("plain")["bucket"]["versioning"] is False


def test_settings_are_brought_to_what_is_asked_for(module: Module) -> None:
    wanted = {"versioning": True, "noncurrent_days": 5, "multipart_days": 2}
    change = module("plain", check=True, **wanted)
    assert change["diff"]["before"]["plain"]["noncurrent_days"] == 0
    assert change["diff"]["after"]["plain"]["noncurrent_days"] == 5
    assert four_steps(module, "plain", **wanted) == [True, True, False, False]
    assert four_steps(module, "plain", versioning=True, expiration_days=9) == [True, True, False, False]
    assert four_steps(module, "plain", versioning=True) == [True, True, False, False]


def test_somebody_elses_lifecycle_is_replaced(module: Module, client: Callable[[str], s3.Client]) -> None:
    rule = "<ID>mine</ID><Filter><Prefix>a/</Prefix></Filter><Status>Enabled</Status>"
    rule += "<Expiration><Days>3</Days></Expiration>"
    document = f"<LifecycleConfiguration><Rule>{rule}</Rule></LifecycleConfiguration>".encode()
    client("admin").request("PUT", "plain", {"lifecycle": ""}, document)
    assert four_steps(module, "plain", versioning=True, noncurrent_days=2) == [True, True, False, False]
    client("admin").request("PUT", "plain", {"lifecycle": ""}, document)
    assert four_steps(module, "plain", versioning=True) == [True, True, False, False]


def test_a_locked_bucket_keeps_every_version(module: Module, client: Callable[[str], s3.Client]) -> None:
    assert four_steps(module, "backups", **LOCKED) == [True, True, False, False]
    own = client("bucket-backups")
    version = own.request("PUT", "backups", body=b"kept", key="a/b c")[0]["x-amz-version-id"]
    own.request("DELETE", "backups", key="a/b c")
    bypass = {"x-amz-bypass-governance-retention": "true"}
    for headers in ({}, bypass):
        with pytest.raises(s3.S3Error, match="AccessDenied"):
            own.request("DELETE", "backups", {"versionId": version}, headers=headers, key="a/b c")
    assert own.request("GET", "backups", {"versionId": version}, key="a/b c")[1] == b"kept"
    with pytest.raises(s3.S3Error) as refused:
        own.request("GET", "backups", key="a/b c")
    assert refused.value.status == 404


def test_an_identity_reaches_no_other_bucket(module: Module, client: Callable[[str], s3.Client]) -> None:
    module("others")
    with pytest.raises(s3.S3Error, match="AccessDenied"):
        client("bucket-backups").request("PUT", "others", body=b"x", key="x")
    with pytest.raises(s3.S3Error, match="AccessDenied"):
        client("bucket-backups").request("PUT", "another")
    with pytest.raises(s3.S3Error, match="AccessDenied"):
        client("bucket-backups").request("PUT", "others", {"versioning": ""}, b"<VersioningConfiguration/>")


def test_a_bucket_with_content_is_not_removed(module: Module) -> None:
    assert "BucketNotEmpty" in module("backups", state="absent")["msg"]
    assert four_steps(module, "others", state="absent") == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("Backups", {}, "S3 does not allow this name"),
        ("ab", {}, "S3 does not allow this name"),
        ("plain", {"noncurrent_days": 3}, "noncurrent_days without versioning"),
        ("plain", {"versioning": True, "lock_mode": "governance"}, "a mode and a number of days"),
        ("plain", {"expiration_days": -1}, "whole numbers from 0"),
        ("backups", {"versioning": True}, "no way to take one away"),
        ("plain", {"secret_key": "wrong", "timeout": 5}, "SignatureDoesNotMatch"),
        ("plain", {"endpoint": "http://127.0.0.1:1"}, "does not answer"),
        ("plain", {"endpoint": "127.0.0.1"}, "it is a URL without a path"),
    ],
)
def test_what_cannot_be_is_told_with_one_reason(
    module: Module, name: str, options: dict[str, Any], reason: str
) -> None:
    found = module(name, **options)
    assert found["failed"]
    assert reason in found["msg"]
