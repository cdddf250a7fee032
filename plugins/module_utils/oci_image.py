# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OCI images in podman's store: what an archive holds, what is missing, what may go."""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class ImageError(Exception):
    """What went wrong, in one sentence."""


def _member(archive: tarfile.TarFile, name: str, path: str) -> Any:
    try:
        stream = archive.extractfile(name)
    except KeyError:
        stream = None
    if stream is None:
        raise ImageError(f"{path} is not a complete image archive: {name} is missing in it")
    return json.loads(stream.read().decode("utf-8"))


def archive_image_id(path: str) -> str:
    """The id (digest of the configuration, hex) of the one image in an OCI or docker archive.

    Reads the tar's headers and two small members only. Raises ImageError naming the path.
    """
    try:
        with tarfile.open(path, mode="r:*") as archive:
            names = archive.getnames()
            if "index.json" in names:
                manifests = _member(archive, "index.json", path).get("manifests") or []
                if len(manifests) != 1:
                    raise ImageError(f"{path} holds {len(manifests)} images, exactly one is needed")
                algorithm, _colon, digest = str(manifests[0]["digest"]).partition(":")
                manifest = _member(archive, f"blobs/{algorithm}/{digest}", path)
                return str(manifest["config"]["digest"]).partition(":")[2]
            manifests = _member(archive, "manifest.json", path)
            if len(manifests) != 1:
                raise ImageError(f"{path} holds {len(manifests)} images, exactly one is needed")
            return str(manifests[0]["Config"]).rsplit("/", 1)[-1].partition(".")[0]
    except FileNotFoundError as error:
        raise ImageError(f"the image archive {path} does not exist on the controller") from error
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{path} cannot be read as an image archive: {error}") from error


def repository_of(reference: str) -> str:
    """A reference without tag and digest: `localhost/causeway/orders:1.0` gives `localhost/causeway/orders`."""
    head = reference.split("@", 1)[0]
    colon = head.rfind(":")
    return head[:colon] if colon > head.rfind("/") else head


def auth_document(auths: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Credentials as containers-auth.json(5) wants them; raises ImageError for an incomplete entry."""
    result = {}
    for registry, entry in auths.items():
        if not isinstance(entry, Mapping) or not entry.get("username") or not entry.get("password"):
            raise ImageError(f"auths: {registry} needs username and password")
        pair = f"{entry['username']}:{entry['password']}".encode()
        result[str(registry)] = {"auth": base64.b64encode(pair).decode("ascii")}
    return {"auths": result}


def present_images(listing: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """`podman images --format json` as reference to id."""
    return {str(name): str(image["Id"]) for image in listing for name in (image.get("Names") or [])} | {
        str(name): str(image["Id"]) for image in listing for name in (image.get("RepoDigests") or [])
    }


def missing_images(wanted: Iterable[Mapping[str, Any]], present: Mapping[str, str]) -> list[str]:
    """References that are not there, or there with another id than the archive's."""
    result = []
    for image in wanted:
        found = present.get(str(image["reference"]))
        if found is None or (image.get("image_id") and found != image["image_id"]):
            result.append(str(image["reference"]))
    return result


def prunable(
    history: Sequence[str], wanted: Iterable[str], present: Mapping[str, str], keep: int
) -> tuple[list[str], list[str]]:
    """(references to remove, history to keep) of the repositories of `wanted`.

    `history` lists references in the order they were loaded, newest last. Of each repository the newest `keep` stay,
    and every wanted one. One image counts once: its digest is no second version beside its tag.
    """
    wanted = list(wanted)
    kept_ids = {present[reference] for reference in wanted if reference in present}
    tagged_ids = {identifier for reference, identifier in present.items() if "@" not in reference}
    repositories = {repository_of(reference) for reference in wanted}
    order = [
        reference
        for reference in history
        if reference in present and ("@" not in reference or present[reference] not in tagged_ids)
    ]
    gone: list[str] = []
    for repository in sorted(repositories):
        loaded = [reference for reference in order if repository_of(reference) == repository]
        old = loaded[:-keep] if keep > 0 else []
        gone += [reference for reference in old if reference not in wanted and present[reference] not in kept_ids]
    return gone, [reference for reference in order if reference not in gone]
