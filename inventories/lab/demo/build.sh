#!/usr/bin/env bash
# Builds the demo services' images without any container registry and saves them as archives.
#   build.sh OUTPUT_DIR PODMAN_DIR PYTHON [VERSION...]
# Without versions: those that the demonstration and the tests need. What follows a version's first dash is what it does wrong on
# purpose: causeway_demo/behaviour.py.
# A base of Debian packages (from the apt sources that this machine uses) and pinned wheels, then one thin layer per release.
# Rebuilds only what the hash of its sources says; prints "built <name>" for each archive it made.
set -euo pipefail
out=$1 state=$2 python=$3
shift 3
self=$(cd "$(dirname "$0")" && pwd)
releases=("$@")
[ $# -gt 0 ] || releases=(1.0.0 1.1.0 1.2.0-unhealthy 1.3.0-broken 1.4.0-errors5)
services=(catalog orders)
packages=python3-aiohttp,python3-uvloop,ca-certificates
mkdir -p "$out" "$state/networks"
out=$(cd "$out" && pwd) state=$(cd "$state" && pwd)
exec 9>"$out/.lock"
flock -w 600 9 || { echo "another build holds $out/.lock" >&2; exit 1; }

# podman's own defaults apply on a systemd + cgroup v2 machine; elsewhere say what fits
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/storage"\nrunroot = "%s/run"\n' "$state" "$state" >"$state/storage.conf"
{
  printf '[engine]\n'
  [ -d /run/systemd/system ] || printf 'cgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
  [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || printf 'runtime = "runc"\n'
  printf '[network]\nnetwork_config_dir = "%s/networks"\n' "$state"
} >"$state/containers.conf"
engine() { CONTAINERS_STORAGE_CONF=$state/storage.conf CONTAINERS_CONF=$state/containers.conf podman "$@"; }

archive_uri() { # base URI of this machine's own main archive ($1 = debian or debian-security)
  apt-get indextargets --format "\$(REPO_URI) \$(COMPONENT)" 'Identifier: Packages' |
    awk -v s="/$1/?$" '$2 == "main" && $1 ~ s { print $1; exit }'
}

build_base() { # NAME
  local main security
  main=$(archive_uri debian) security=$(archive_uri debian-security)
  [ -n "$main" ] || { echo "no Debian archive in this machine's apt sources" >&2; exit 1; }
  work=$(mktemp -d "$out/.base.XXXXXX")
  trap 'rm -rf "$work"' RETURN EXIT
  "$python" -m pip download -q --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: --dest "$work/wheels" \
    --python-version 3.13 --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 -r "$self/requirements.txt" 2>"$work/pip.log" ||
    { cat "$work/pip.log" >&2; exit 1; }
  mkdir "$work/site"
  for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work/site"; done
  # "extract" unpacks without installing: no shell, no package manager, only what Python needs
  SITE=$work/site SELF=$self mmdebstrap --mode=root --variant=extract --format=tar --quiet \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --include="$packages" \
    --extract-hook="$self/base_hook.sh" \
    trixie "$work/base.tar" "deb $main trixie main" "deb $main trixie-updates main" \
    ${security:+"deb $security trixie-security main"}
  engine import -q "$work/base.tar" "$1" >/dev/null
}

hash_of() { cat "$@" | sha256sum | cut -c1-16; }
base_hash=$(hash_of "$self/requirements.txt" "$self"/*.sh)
base=localhost/causeway/demo-base:$base_hash
wanted=$(hash_of "$self/requirements.txt" "$self"/*.sh "$self/Containerfile" "$self"/causeway_demo/*.py)
for version in "${releases[@]}"; do
  for service in "${services[@]}"; do
    archive=$out/$service-$version.tar
    if [ -s "$archive" ] && [ "$(cat "$archive.sources" 2>/dev/null)" = "$wanted" ]; then continue; fi
    engine image exists "$base" || build_base "$base"
    case $version in *-*) behaviour=${version#*-} ;; *) behaviour=good ;; esac
    # a fixed timestamp: equal sources give an equal image id; no layer cache: it overlooks build arguments (buildah 1.28)
    engine build -q --pull=never --layers=false --timestamp 0 --build-arg "BASE=$base" --build-arg "SERVICE=$service" --build-arg "VERSION=$version" \
      --build-arg "BEHAVIOUR=$behaviour" -t "localhost/causeway/$service:$version" -f "$self/Containerfile" "$self" >/dev/null
    rm -f "$archive.new"
    engine save -q --format oci-archive -o "$archive.new" "localhost/causeway/$service:$version"
    mv "$archive.new" "$archive"
    echo "$wanted" >"$archive.sources"
    echo "built $service-$version"
  done
done
