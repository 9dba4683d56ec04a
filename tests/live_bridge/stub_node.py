"""A process that stands in for a node: `python stub_node.py PORT HOW [FILE]`, answering GET /ready.

HOW   good; late (ready at its third asking); deaf (ignores SIGTERM); broken (ends at once); parent (starts a child, writes its id
      to FILE); slow (writes to FILE when it has been told to stop)
"""

import http.server
import itertools
import signal
import subprocess
import sys
from pathlib import Path

asked = itertools.count(1)


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503 if sys.argv[2] == "late" and next(asked) < 3 else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


def main() -> None:
    how = sys.argv[2]
    if how == "broken":
        sys.exit("port 9 is taken by somebody else")
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how == "slow":

        def leave(*_: object) -> None:
            with Path(sys.argv[3]).open("a") as file:
                file.write(f"{sys.argv[1]}\n")
            sys.exit(0)

        signal.signal(signal.SIGTERM, leave)
    if how == "parent":
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
        Path(sys.argv[3]).write_text(str(child.pid))
    print(f"{how} listens", flush=True)
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()


main()
