#!/bin/sh
# Makes an authority and a certificate for each process and an operator, for mTLS between the
# processes: certificates.sh FOLDER [PATTERN]. What is there already stays. A certificate is valid for
# the name of its role, such as `generation`, and for PATTERN, in which % stands for the role:
# certificates.sh FOLDER tuneloop-%.tuneloop.svc
set -eu
folder=$1
pattern=${2:-%}
days=3650
umask 077
mkdir -p "$folder"
cd "$folder"

new_key() {
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$1"
}

if [ ! -s ca.crt ]; then
  new_key ca.key
  openssl req -x509 -new -key ca.key -sha256 -days "$days" -subj "/CN=tuneloop authority" -out ca.crt
fi
for role in gateway generation reward learner operator; do
  [ -s "$role.crt" ] && continue
  other=$(printf %s "$pattern" | sed "s/%/$role/")
  new_key "$role.key"
  openssl req -new -key "$role.key" -subj "/CN=$role" -out "$role.csr"
  printf '%s\n' "subjectAltName=DNS:$role,DNS:$other" "extendedKeyUsage=serverAuth,clientAuth" \
    "basicConstraints=critical,CA:FALSE" >"$role.ext"
  openssl x509 -req -in "$role.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 \
    -days "$days" -extfile "$role.ext" -out "$role.crt"
  rm "$role.csr" "$role.ext"
done
rm -f ca.srl
echo "certificates are in $(pwd)"
