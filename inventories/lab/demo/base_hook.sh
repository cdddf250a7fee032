#!/bin/sh
# Runs inside mmdebstrap for build.sh when the packages are unpacked in the directory $1: adds the wheels of $SITE, users and
# certificates, proves that the demo of $SELF imports, and removes what no service needs.
set -eu
root=$1
for name in bin sbin lib lib64; do
  [ ! -d "$root/usr/$name" ] || [ -e "$root/$name" ] || ln -s "usr/$name" "$root/$name"
done
cp -r "$SITE/." "$root/usr/lib/python3/dist-packages/"
printf 'root:x:0:0::/:/none\ndemo:x:10001:10001::/:/none\n' >"$root/etc/passwd"
printf 'root:x:0:\ndemo:x:10001:\n' >"$root/etc/group"
find "$root/usr/share/ca-certificates" -name '*.crt' | sort | xargs cat >"$root/etc/ssl/certs/ca-certificates.crt"
mkdir -p "$root/tmp" "$root/opt"
cp -r "$SELF/causeway_demo" "$root/opt/"
chroot "$root" /usr/bin/python3 -c '
import sys; sys.path.insert(0, "/opt")
import causeway_demo.orders, causeway_demo.catalog, causeway_demo.database
import opentelemetry.exporter.otlp.proto.http.trace_exporter, opentelemetry.sdk.trace.export'
rm -rf "$root/opt/causeway_demo" "$root"/var/lib/apt "$root"/var/cache/* "$root"/var/log/* "$root"/usr/share/zoneinfo \
  "$root"/usr/lib/x86_64-linux-gnu/gconv "$root"/usr/lib/python3*/ensurepip "$root"/usr/lib/python3*/idlelib \
  "$root"/usr/lib/python3*/pydoc_data
rm -f "$root"/usr/bin/dpkg* "$root"/usr/bin/debconf* "$root/etc/resolv.conf" "$root/etc/hostname"
