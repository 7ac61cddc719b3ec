"""A server for tables at an address."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Answers on 127.0.0.1: the content of a path, or the status that a path names; gives its address."""
    answers: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/hangup":
                return
            status = int(path[1:]) if path[1:].isdigit() else 200 if path in answers else 404
            self.send_response(status)
            content = answers.get(path, b"")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{httpd.server_port}", answers
        finally:
            httpd.shutdown()
            thread.join()
