"""Prints every alert that Alertmanager sends: what stands where your pager would."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Pager(BaseHTTPRequestHandler):
    """Takes a message of a webhook at any path."""

    def do_POST(self) -> None:
        """Print a line for each alert of the message."""
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for alert in message["alerts"]:
            print(self.path, alert["status"], alert["annotations"]["summary"], flush=True)
        self.send_response(200)
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("", 9095), Pager).serve_forever()
