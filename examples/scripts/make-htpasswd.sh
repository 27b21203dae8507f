#!/usr/bin/env bash
# Adds a name to examples/keys/htpasswd, as bcrypt.
#
#   make-htpasswd.sh NAME [PASSWORD]      asks for the password if it is not given
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$#" -ge 1 ] || { sed -n 's/^# \{0,1\}//; 2,4p' "scripts/$(basename "$0")" >&2; exit 2; }
command -v htpasswd >/dev/null || { echo "htpasswd is missing (Debian: apt install apache2-utils)" >&2; exit 1; }
mkdir -p keys
umask 077
touch keys/htpasswd
if [ "$#" -ge 2 ]; then
    printf '%s' "$2" | htpasswd -i -B -C 10 keys/htpasswd "$1"
else
    htpasswd -B -C 10 keys/htpasswd "$1"
fi
