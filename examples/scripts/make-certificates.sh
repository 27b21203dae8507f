#!/usr/bin/env bash
# Makes, in examples/certs/: an authority (ca), a certificate for localhost, and one for a client named "billing". For trying only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p certs
cd certs
umask 077

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

key ca.key
openssl req -x509 -new -key ca.key -days 365 -subj '/CN=Tollgate examples CA' \
    -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign' -out ca.pem

issue() { # NAME SUBJECT ALTERNATIVE-NAMES USAGE
    key "$1.key"
    openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -out "$1.pem" 2>/dev/null -extfile /dev/stdin <<END
basicConstraints=CA:FALSE
subjectAltName=$3
extendedKeyUsage=$4
END
    rm -f "$1.csr"
}
issue localhost '/CN=localhost' 'DNS:localhost,IP:127.0.0.1,IP:::1' serverAuth
issue client '/O=Example/CN=billing' 'URI:spiffe://example.com/billing' clientAuth
echo "made examples/certs/{ca,localhost,client}.pem with their keys" >&2
