#!/usr/bin/env bash
# Prints a token, signed with examples/keys/issuer.key, that is good for an hour.
#
#   sign-jwt.sh sub=1 role=admin scope='orders:read orders:write'
#
# Claims are strings. iss, aud and exp are as examples/jwt.yaml wants them unless given; exp and nbf are numbers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -f keys/issuer.key ] || { echo "no key yet: run examples/scripts/make-jwt-keys.sh" >&2; exit 1; }

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

iss=https://id.example.com aud=example exp=$(($(date +%s) + 3600)) rest=
for claim in "$@"; do
    name=${claim%%=*} value=${claim#*=}
    case $name in
        iss) iss=$value ;;
        aud) aud=$value ;;
        exp) exp=$value ;;
        nbf) rest+=",\"nbf\":$value" ;;
        *) rest+=",\"$name\":\"$value\"" ;;
    esac
done
head=$(printf '{"alg":"RS256","typ":"JWT"}' | base64url)
body=$(printf '{"iss":"%s","aud":"%s","exp":%s%s}' "$iss" "$aud" "$exp" "$rest" | base64url)
printf '%s.%s.%s\n' "$head" "$body" "$(printf '%s.%s' "$head" "$body" | openssl dgst -sha256 -sign keys/issuer.key -binary | base64url)"
