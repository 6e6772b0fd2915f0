#!/bin/sh
# Makes the secrets that compose.yaml reads, in deploy/secrets/; what is there already stays.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
# The folder is for its owner only; the files inside can be read by whoever they are mounted for.
umask 022
for name in postgres_password grafana_password gateway_secret \
  nats_gateway_password nats_generation_password nats_reward_password nats_learner_password nats_admin_password; do
  # A letter first: nats-server would take one that begins like a number for one.
  [ -s "secrets/$name" ] || printf 's%s' "$(openssl rand -hex 32)" >"secrets/$name"
done
if [ ! -s secrets/manifest_private.pem ]; then
  openssl genpkey -algorithm ed25519 -out secrets/manifest_private.pem
  openssl pkey -in secrets/manifest_private.pem -pubout -out secrets/manifest_public.pem
fi
./certificates.sh secrets/grpc
chmod 0644 secrets/*_* secrets/grpc/*
chmod 0600 secrets/grpc/ca.key
echo "secrets are in $(pwd)/secrets"
