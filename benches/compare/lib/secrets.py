"""A certificate and a signed token, made anew for each run with the openssl command."""

import base64
import json
import os
import time

from . import configs


def certificate(processes, openssl, directory):
    """A self-signed ECDSA P-256 certificate for localhost: the kind most sites serve today."""
    paths = {name: os.path.join(directory, f"site.{name}") for name in ("cert", "key", "both")}
    processes.run([openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "7",
                   "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                   "-keyout", paths["key"], "-out", paths["cert"]], timeout=30)
    with open(paths["cert"]) as cert, open(paths["key"]) as key:
        configs.write(directory, "site.both", cert.read() + key.read())
    return paths


def token(processes, openssl, directory):
    """An RS256 token as an identity provider would issue it: (the token, the path of the public key)."""
    private, public = os.path.join(directory, "issuer.key"), os.path.join(directory, "issuer.pem")
    processes.run([openssl, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", private], timeout=60)
    processes.run([openssl, "pkey", "-in", private, "-pubout", "-out", public], timeout=30)
    now = int(time.time())
    claims = {"iss": configs.ISSUER, "aud": configs.AUDIENCE, "sub": "user-42", "tenant": "acme", "scope": "orders:read",
              "iat": now, "exp": now + 7 * 24 * 3600}
    signed = f"{_encoded({'alg': 'RS256', 'typ': 'JWT'})}.{_encoded(claims)}"
    text, signature = configs.write(directory, "token.txt", signed), os.path.join(directory, "token.sig")
    processes.run([openssl, "dgst", "-sha256", "-sign", private, "-out", signature, text], timeout=30)
    with open(signature, "rb") as file:
        return f"{signed}.{_base64url(file.read())}", public


def _encoded(value):
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
