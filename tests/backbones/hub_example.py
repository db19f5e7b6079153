"""A server on this machine that answers as the Hugging Face hub does, and a small DINOv2 for it."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections import Counter

from bmfl_lab.backbones.vit import Architecture

NAME, REVISION = "dinov2_vits14_reg", "a1" * 20
SMALL = Architecture(NAME, width=48, n_heads=3, n_blocks=2, n_registers=4, grid=4)
CONFIG = {
    "model_type": "dinov2_with_registers",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "patch_size": 14,
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The three requests by which the client of the hub finds and downloads a repository."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        server, path = self.server, self.path.split("?")[0]
        server.asked[f"{self.command} {path.rsplit('/', 1)[-1]}"] += 1
        headers = {"X-Repo-Commit": REVISION}
        if server.gone and path != "/":
            self.send_error(404)
            return
        if path.startswith("/api/models/facebook/dinov2"):
            names = [
                {
                    "rfilename": name,
                    "path": name,
                    "type": "file",
                    "size": len(data),
                    "oid": "0" * 40,
                }
                for name, data in server.files.items()
            ]
            data = json.dumps({"id": "facebook/x", "sha": REVISION, "siblings": names}).encode()
            if "/tree/" in path:
                data = json.dumps(names).encode()
            headers["Content-Type"] = "application/json"
        elif path.rsplit("/", 1)[-1] in server.files:
            name = path.rsplit("/", 1)[-1]
            data = server.files[name]
            if name.endswith(".safetensors"):
                headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
                headers["X-Linked-Size"] = str(len(data))
                data = data[:-1] + b"x" if server.spoilt else data
            headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
        else:
            self.send_response(200 if path == "/" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextlib.contextmanager
def serving(weights, config=CONFIG):
    """Yield a server of one repository, whose weights are the bytes of a safetensors file."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked, server.spoilt, server.gone = Counter(), False, False
        server.files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
