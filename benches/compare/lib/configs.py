"""The configuration of the backend and of every proxy: two workers each, the same work, access logs off."""

import json
import os

# The fixed answer of the backend: 200 bytes of JSON.
BODY_BYTES = 200
BODY = '{"id":42,"name":"Ada Lovelace","email":"ada@example.com","roles":["admin","editor"],"note":"'
BODY += "x" * (BODY_BYTES - len(BODY) - 2) + '"}'
FILE_BYTES = 1024 * 1024
WORKERS = 2
# More than any row has connections, so that no proxy throws connections away and opens them again.
POOL = 4096
MAX_CONNECTIONS = 16384
ISSUER, AUDIENCE = "https://id.example.com", "compare"
ORIGIN = "https://app.example.com"


def write(directory, name, text):
    """Writes a file of the run's directory and gives back its path."""
    path = os.path.join(directory, name)
    with open(path, "w") as file:
        file.write(text)
    return path


def nginx_head(directory, workers):
    """What the backend and the peer have in common."""
    # As root, nginx would drop to a user that may not read this run's directory.
    user = "user root;" if os.geteuid() == 0 else ""
    paths = "\n".join(f"  {kind}_temp_path {directory}/temp_{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""{user}
daemon off;
pid {directory}/pid;
worker_processes {workers};
worker_rlimit_nofile 65536;
events {{ worker_connections {MAX_CONNECTIONS}; }}
http {{
{paths}
  access_log off;
  tcp_nodelay on;
  sendfile on;
  keepalive_requests 1000000000;
  keepalive_timeout 300s;
  client_max_body_size 0;
"""


def backend(directory, ports):
    """nginx as the backend: / and /json a fixed body, /1m a file, /upload a sink."""
    root = os.path.join(directory, "root")
    os.makedirs(root)
    write(root, "1m", "x" * FILE_BYTES)
    # `return` would answer before the body is read. A proxied location reads all of it first (into memory: the buffer
    # holds it), so the answer is sent when the upload is complete.
    return write(directory, "nginx.conf", nginx_head(directory, 2) + f"""
  upstream sink {{ server 127.0.0.1:{ports['sink']}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{ports['sink']} backlog=4096;
    default_type application/json;
    return 200 '{{"stored":true}}';
  }}
  server {{
    listen 127.0.0.1:{ports['http']} backlog=4096;
    location / {{ default_type application/json; return 200 '{BODY}'; }}
    location = /1m {{ root {root}; default_type application/octet-stream; }}
    location = /upload {{
      client_body_buffer_size 2m;
      proxy_pass http://sink;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Content-Length "";
      proxy_pass_request_body off;
    }}
  }}
}}
""")


def many_backends(directory, addresses, port):
    """nginx as many endpoints: the fixed body on each address."""
    listen = "\n".join(f"    listen {address}:{port} backlog=4096;" for address in addresses)
    return write(directory, "nginx.conf", nginx_head(directory, 2) + f"""
  server {{
{listen}
    location / {{ default_type application/json; return 200 '{BODY}'; }}
  }}
}}
""")


def nginx(directory, ports, backend_ports, tls, same=False):
    """nginx as the peer, tuned the way its manual recommends for a proxy, and streaming bodies as the others do. With `same` it adds the
    same fields as Tollgate by default."""
    # Of each location: one with fields of its own inherits none.
    fields = ["Host $http_host", "X-Forwarded-For $proxy_add_x_forwarded_for", "X-Forwarded-Proto $scheme"]
    if same:
        fields += ["X-Forwarded-Host $http_host", "X-Forwarded-Port $server_port", "X-Request-Id $request_id"]
    fields = " ".join(f"proxy_set_header {field};" for field in fields)
    answered = "add_header X-Request-Id $request_id always;" if same else ""
    return write(directory, "nginx.conf", nginx_head(directory, WORKERS) + f"""
  upstream backend {{ server 127.0.0.1:{backend_ports['http']}; keepalive {POOL}; keepalive_requests 1000000000; keepalive_timeout 300s; }}
  upstream echo {{ server 127.0.0.1:{backend_ports['echo']}; }}
  server {{
    listen 127.0.0.1:{ports['http']} backlog=4096 reuseport;
    listen 127.0.0.1:{ports['h2c']} backlog=4096 reuseport http2;
    listen 127.0.0.1:{ports['tls']} backlog=4096 reuseport ssl http2;
    ssl_certificate {tls['cert']};
    ssl_certificate_key {tls['key']};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:SSL:10m;
    http2_max_concurrent_streams 128;
    proxy_http_version 1.1;
    # Never through a file on disk: bodies larger than the buffers are streamed.
    proxy_max_temp_file_size 0;
    proxy_request_buffering off;
    location / {{ {fields} {answered} proxy_set_header Connection ""; proxy_pass http://backend; }}
    location = /ws {{
      {fields}
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
      proxy_read_timeout 300s;
      proxy_pass http://echo;
    }}
  }}
}}
""")


def haproxy(directory, ports, backend_ports, tls, same=False):
    """HAProxy: one process, two threads, connections to the backend shared by all requests. With `same` it adds the same fields as Tollgate
    by default."""
    fields = """
  http-request set-var(txn.id) uuid()
  http-request set-header X-Request-Id %[var(txn.id)]
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Forwarded-Port %[dst_port]
  http-response set-header X-Request-Id %[var(txn.id)]""" if same else ""
    return write(directory, "haproxy.cfg", f"""
global
  nbthread {WORKERS}
  maxconn {MAX_CONNECTIONS}
  no strict-limits
  tune.h2.max-concurrent-streams 128
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  option http-keep-alive
  option forwardfor
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
  timeout tunnel 300s
frontend gate
  bind 127.0.0.1:{ports['http']} backlog 4096
  bind 127.0.0.1:{ports['h2c']} backlog 4096 proto h2
  bind 127.0.0.1:{ports['tls']} backlog 4096 ssl crt {tls['both']} alpn h2,http/1.1
  http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
  http-request set-header X-Forwarded-Proto http if !{{ ssl_fc }}{fields}
  use_backend echo if {{ path /ws }}
  default_backend backend
backend backend
  server one 127.0.0.1:{backend_ports['http']} pool-purge-delay 300s
backend echo
  server one 127.0.0.1:{backend_ports['echo']}
""")


def envoy(directory, ports, backend_ports, tls):
    """Envoy with the smallest connection manager that does this work. JSON, which is YAML."""
    def address(port):
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def cluster(name, port):
        endpoint = {"endpoint": {"address": address(port)}}
        limits = {name: 1000000 for name in ("max_connections", "max_pending_requests", "max_requests", "max_retries")}
        return {"name": name, "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": {"thresholds": [limits]},
                "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}}

    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gate",
        "use_remote_address": True,
        "generate_request_id": False,
        # The handshake row's client speaks HTTP/1.0.
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "localhost"},
        "http2_protocol_options": {"max_concurrent_streams": 128},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"path": "/ws"}, "route": {"cluster": "echo", "timeout": "0s", "upgrade_configs": [{"upgrade_type": "websocket"}]}},
            {"match": {"prefix": "/"}, "route": {"cluster": "backend", "timeout": "30s"}},
        ]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    certificate = {"certificate_chain": {"filename": tls["cert"]}, "private_key": {"filename": tls["key"]}}
    secured = {"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [certificate],
                               "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}}}}
    config = {"static_resources": {
        "listeners": [
            {"name": "http", "address": address(ports["http"]), "filter_chains": [{"filters": filters}]},
            {"name": "tls", "address": address(ports["tls"]), "filter_chains": [{"filters": filters, "transport_socket": secured}]},
        ],
        "clusters": [cluster("backend", backend_ports["http"]), cluster("echo", backend_ports["echo"])],
    }}
    return write(directory, "envoy.json", json.dumps(config, indent=1))


def tollgate_head(ports, backend_ports, tls, size=None, endpoints=None):
    """Listeners, workers and upstreams of all Tollgate configurations."""
    workers = size.workers if size and size.workers else WORKERS
    most = f", max_connections: {size.max_connections}" if size and size.max_connections else ""
    endpoints = json.dumps(endpoints or [f"http://127.0.0.1:{backend_ports['http']}"])
    return f"""
listeners:
  - address: 127.0.0.1:{ports['http']}
  - address: 127.0.0.1:{ports['tls']}
    tls: {{ certificates: [{{ cert: {tls['cert']}, key: {tls['key']} }}] }}
server: {{ workers: {workers}, timeouts: {{ idle: 300s, drain: 1s }}{most} }}
upstreams:
  backend:
    endpoints: {endpoints}
    pool: {{ max_idle: {POOL}, idle_timeout: 300s, max_connections: {MAX_CONNECTIONS} }}
  echo:
    endpoints: ["http://127.0.0.1:{backend_ports['echo']}"]
    pool: {{ max_connections: {MAX_CONNECTIONS} }}
"""


def tollgate(directory, ports, backend_ports, tls):
    """Tollgate as a plain proxy: its defaults, without the access log."""
    return write(directory, "gateway.yaml", tollgate_head(ports, backend_ports, tls) + """
log: { level: warn, access: { enabled: false } }
routes:
  - { name: echo, match: { path: /ws }, upstream: echo }
  - { name: all, match: { prefix: / }, upstream: backend }
""")


def tollgate_sized(directory, ports, backend_ports, tls, size, extras):
    """Tollgate as a plain proxy in another size."""
    endpoints = extras.endpoints(size.endpoints) if size.endpoints else None
    text = tollgate_head(ports, backend_ports, tls, size, endpoints)
    routes = [f"  - {{ match: {{ path: '/svc{index}/users/{{id}}' }}, upstream: backend }}" for index in range((size.routes or 1) - 1)]
    if size.slow:
        text += f"  slow: {{ endpoints: ['http://127.0.0.1:{extras.slow()}'] }}\n"
        routes.append("  - { match: { path: /slow }, upstream: slow }")
    # What every proxy must answer before it is measured.
    checked = "" if endpoints is None else f"  checked: {{ endpoints: ['http://127.0.0.1:{backend_ports['http']}'] }}\n"
    if checked:
        text += checked
        routes += ["  - { match: { path: /1m }, upstream: checked }", "  - { match: { path: /upload }, upstream: checked }"]
    routes.append("  - { name: all, match: { prefix: / }, upstream: backend }")
    return write(directory, "gateway.yaml", text + "log: { level: warn, access: { enabled: false } }\nroutes:\n" + "\n".join(routes) + "\n")


def tollgate_chain(directory, ports, backend_ports, tls, public_key):
    """Tollgate with the whole chain on. The limits are far above what can be sent, so that every request passes them."""
    return write(directory, "gateway.yaml", tollgate_head(ports, backend_ports, tls) + f"""
admin: {{ address: 127.0.0.1:{ports['admin']} }}
log: {{ level: warn, format: json, access: {{ enabled: true, output: {directory}/access.log }} }}
authenticators:
  main:
    jwt: {{ issuer: "{ISSUER}", audience: ["{AUDIENCE}"], algorithms: [RS256], public_key: {public_key}, forward: {{ sub: x-user-id }} }}
routes:
  - name: all
    match: {{ prefix: / }}
    cors: {{ origins: ["{ORIGIN}"], methods: [GET, POST], expose: [x-request-id] }}
    rate_limit:
      - {{ by: ip, rate: 1000000/s }}
      - {{ by: global, rate: 1000000/s }}
    auth: main
    headers:
      request: {{ set: {{ x-tenant: "{{claim:tenant}}", x-gateway: tollgate }}, remove: [x-internal] }}
      response: {{ set: {{ x-served-by: tollgate }}, remove: [server] }}
      security: true
    upstream: backend
""")
