"""What the world may reach: nginx in front of a SuperLink, open for what a SuperNode needs and closed for the rest.

Flower's SuperLink serves three interfaces on one port, and the one that starts runs (any Python, on every node) asks for no login in
the open-source build. So the SuperLink listens on 127.0.0.1 alone, and nginx passes on these twelve paths, each to the letter.
"""

import getpass
import os
from pathlib import Path

from simulations.deploy.files import Server

FLEET = (
    "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat", "pull-messages", "push-messages",
    "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
RATE, BURST = 100, 400  # requests a second of one address, and how many more may come at once
BODY = 12  # MiB: Flower sends arrays in pieces of 5 MiB, an app bundle has 10 at most

CONFIG = """# Made by `deploy nginx`. Only these paths are open to the world: see docs/deploy.md.
{user}worker_processes auto;
pid {home}/nginx.pid;
error_log {home}/logs/nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    server_tokens off;
    client_body_temp_path {home}/nginx/body;
    proxy_temp_path {home}/nginx/proxy;
    fastcgi_temp_path {home}/nginx/fastcgi;
    uwsgi_temp_path {home}/nginx/uwsgi;
    scgi_temp_path {home}/nginx/scgi;
    limit_req_zone $binary_remote_addr zone=each:10m rate={rate}r/s;
    limit_conn_zone $binary_remote_addr zone=open:10m;
    upstream superlink {{ server {link}; keepalive 64; }}
    server {{
        listen {port} ssl;
        ssl_certificate {folder}/server.crt;
        ssl_certificate_key {folder}/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        client_max_body_size {body}m;
        client_body_timeout 60s;
        client_header_timeout 20s;
        limit_req zone=each burst={burst} nodelay;
        limit_conn open 256;
        location / {{ return 403; }}
        location ~ ^/v1/fleet/({paths})$ {{
            limit_except POST {{ deny all; }}
            proxy_pass https://superlink;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host localhost;
            proxy_ssl_trusted_certificate {folder}/ca.crt;
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""


def config(server: Server) -> str:
    """Nginx's configuration for a server."""
    user = f"user {getpass.getuser()};\n" if os.geteuid() == 0 else ""
    return CONFIG.format(user=user, home=server.home, folder=server.folder, link=server.link, port=server.port, rate=RATE, burst=BURST,
                         body=BODY, paths="|".join(FLEET))  # fmt: skip


def write(server: Server) -> Path:
    """Write it into the server's home, with the folders that it names."""
    for folder in (server.home / "nginx", server.home / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    path = server.home / "nginx.conf"
    path.write_text(config(server))
    return path
