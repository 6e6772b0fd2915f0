#!/bin/bash
# Builds a target of the Dockerfile without Docker and runs it as Kubernetes would: as its user, on a
# read-only root, with nothing but /tmp and its cache to write to.
#
#   deploy/check_dockerfile.sh [gateway|reward]
#
# Needs root, buildah and debootstrap. The base is a Debian 12 with its own Python 3.11 in place of the
# official image. BUILD_OPTIONS goes to `buildah build` (--volume for a package index's certificates,
# --build-arg TORCH_CPU_INDEX=…). Everything is under a folder that is removed in the end.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-gateway}
work=$(mktemp -d)
run=(buildah --root "$work/storage" --runroot "$work/run")
trap 'umount --recursive "$work"/root 2>/dev/null || true; "${run[@]}" rm --all >/dev/null 2>&1 || true
  "${run[@]}" rmi --all --force >/dev/null 2>&1 || true; rm -rf "$work"' EXIT

base=${BASE_TAR:-$work/base.tar}
if [ ! -e "$base" ]; then
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base" >/dev/null
  ln -s /usr/bin/python3 "$work/base/usr/local/bin/python"
  tar -C "$work/base" -cf "$base" .
fi
container=$("${run[@]}" from scratch)
"${run[@]}" add "$container" "$base" / >/dev/null
"${run[@]}" config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
"${run[@]}" commit --quiet --rm "$container" localhost/base:check >/dev/null
# shellcheck disable=SC2086
"${run[@]}" bud --isolation chroot --format docker --pull-never --layers=false \
  --build-arg BASE_IMAGE=localhost/base:check ${BUILD_OPTIONS:-} --target "$target" --tag "$target:check" . >"$work/build.log" 2>&1 ||
  { tail -40 "$work/build.log" >&2; exit 1; }
echo "built $target"

container=$("${run[@]}" from --pull-never "$target:check")
mkdir "$work/root"
mount --bind "$("${run[@]}" mount "$container")" "$work/root"
mount -t tmpfs tmpfs "$work/root/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=0750 tmpfs "$work/root/var/cache/tuneloop"
mount -t proc proc "$work/root/proc"
mount --bind /dev "$work/root/dev"
mount -o remount,bind,ro "$work/root"
environment=$("${run[@]}" inspect --format '{{range .OCIv1.Config.Env}}{{.}}{{"\n"}}{{end}}' "$container")
mapfile -t environment <<<"$environment"
cat >"$work/inside.sh" <<'INSIDE'
set -e
touch /opt/tuneloop/written 2>/dev/null && { echo "the root can be written to" >&2; exit 1; }
[ "$(id -u)" = 10001 ]
cd "$HOME"
umask 077
printf '%064d' 1 >/tmp/secret
openssl genpkey -algorithm ed25519 -out /tmp/private.pem
openssl pkey -in /tmp/private.pem -pubout -out /tmp/public.pem
export TUNELOOP_GATEWAY_SECRET_FILE=/tmp/secret TUNELOOP_GATEWAY_API_KEY=a-key-for-this-check
export TUNELOOP_REWARD_VERIFY_KEY_FILE=/tmp/public.pem TUNELOOP_REWARD_WEIGHTS_URI=/tmp/weights
nats-server -js -sd /tmp/nats -a 127.0.0.1 >/tmp/nats.log 2>&1 &
nats=$!
"tuneloop-$TARGET" >/tmp/process.log 2>&1 &
process=$!
for _ in $(seq 120); do
  kill -0 "$process" || break
  # A gateway by itself runs, and is ready once generation is.
  if [ "$TARGET" = gateway ]; then
    python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz')" 2>/dev/null && healthy=yes
    tuneloop-healthcheck gateway && { echo "ready without generation" >&2; exit 1; }
  else
    tuneloop-healthcheck "$TARGET" && healthy=yes
  fi
  [ "${healthy:-}" = yes ] && break
  sleep 1
done
[ "${healthy:-}" = yes ] || { cat /tmp/process.log >&2; exit 1; }
kill -TERM "$process"
wait "$process"
kill "$nats"
echo "tuneloop-$TARGET answered its health check and ended with status 0"
INSIDE
cp "$work/inside.sh" "$work/root/tmp/inside.sh"
chmod 1777 "$work/root/tmp"
# A network of its own, so that its ports are free.
unshare --net --pid --fork --kill-child bash -c '
  ip link set lo up
  exec chroot --userspec=10001:10001 "$0" env --ignore-environment "${@:2}" TARGET="$1" bash /tmp/inside.sh
' "$work/root" "$target" "${environment[@]}"
