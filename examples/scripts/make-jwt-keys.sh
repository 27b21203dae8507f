#!/usr/bin/env bash
# Makes an RSA key pair in examples/keys/: issuer.key signs tokens (sign-jwt.sh), issuer.pem verifies them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p keys
umask 077
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out keys/issuer.key 2>/dev/null ||
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out keys/issuer.key 2>/dev/null
openssl pkey -in keys/issuer.key -pubout -out keys/issuer.pem
echo "made examples/keys/issuer.key and examples/keys/issuer.pem" >&2
