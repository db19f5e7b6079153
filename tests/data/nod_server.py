"""A local HTTP server of a small copy of NOD, with the faults of a bad network."""

import http.server
import multiprocessing
import os
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from bmfl_lab.data import nod_fetch
from bmfl_lab.files import sha256_file


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        server, path = self.server, unquote(self.path.split("?")[0]).lstrip("/")
        file, faults = server.root / path, server.faults
        if body:
            server.asked[path] += 1
        n = server.asked[path]
        if not file.is_file() or faults.get("missing") == path:
            return self.bare(404)
        if body and n <= faults.get("errors", 0):
            return self.bare(503)
        data = file.read_bytes()
        start = int(self.headers["Range"][6:].split("-")[0]) if "Range" in self.headers else 0
        if start:
            server.ranges.append((path, start))
        if start and faults.get("refuse_ranges"):
            return self.bare(416)
        if faults.get("ignore_ranges"):
            start = 0
        if faults.get("wrong_range") and start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes 0-{len(data) - 1}/{len(data)}")
            start = 0
        elif start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if faults.get("wrong") == path and n <= faults.get("wrong_times", 99):
            data = data[:-1] + bytes([data[-1] ^ 1])
        if faults.get("longer") == path:
            data += b"more"
        data = data[start:]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return None
        piece, pause = faults.get("piece", 1 << 20), faults.get("pause", 0)
        sent = 0
        while sent < len(data):
            part = data[sent : sent + piece]
            self.wfile.write(part)
            sent += len(part)
            if n <= faults.get("cut", 0) and sent < len(data):
                self.wfile.flush()
                self.close_connection = True
                return self.connection.close()
            if n <= faults.get("stall", 0):
                time.sleep(faults["seconds"])
            time.sleep(pause)
        return None

    def bare(self, code):
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, ValueError, OSError):
            pass


def make(root, faults):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.root, server.faults, server.asked, server.ranges = Path(root), faults, Counter(), []
    return server


@contextmanager
def serve(root, **faults):
    """Yield the server, whose address is `server.address`."""
    server = make(root, faults)
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _run(root, faults, pipe):
    server = make(root, faults)
    pipe.send(server.server_address[1])
    server.serve_forever()


@contextmanager
def serve_in_process(root, **faults):
    """Yield the address of a server in a process of its own, so that clients can be forked."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_run, args=(root, faults, there))
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def manifest_of(root):
    """The manifest of all files of a tree."""
    files = sorted(p for p in Path(root).rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): (p.stat().st_size, sha256_file(p)[:32]) for p in files}


def manifest_text(manifest, version=nod_fetch.VERSION):
    return "\n".join([version, *(f"{p}\t{s}\t{d}" for p, (s, d) in manifest.items())])


def final_files(root):
    """Files under their final names, by path."""
    found = (p for p in Path(root).rglob("*") if p.is_file() and ".partial" not in p.parts)
    return {os.path.relpath(p, root): p for p in found if p.name != ".fetch.lock"}
