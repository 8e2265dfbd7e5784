"""A W&B server of this machine, as far as a run needs one, that can be told to fail."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = {
    **{"id": "b", "name": "r", "displayName": "r", "config": "{}", "historyLineCount": 0},
    "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault
        if fault == "hang":
            self.server.closed.wait()
        if fault in ("hang", "die"):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault is not None:
            self.answer(fault, {"errors": [{"message": "no"}]})
        else:
            self.answer(200, self.result(body) if self.path == "/graphql" else {})

    do_PUT = do_POST

    def result(self, body):
        asked = json.loads(body)
        if "UpsertBucket" in asked["query"]:
            return {"data": {"upsertBucket": {"bucket": BUCKET, "inserted": True}}}
        if "CreateRunFiles" in asked["query"]:
            url = f"{self.server.url}/upload"
            files = [{"name": name, "uploadUrl": url} for name in asked["variables"]["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        return {"data": {"model": None}}

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    """Serves until the process ends.

    Attributes:
        fault: None, a status that every answer has, `hang`, or `die`.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = None
        self.closed = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *arguments):
        pass
