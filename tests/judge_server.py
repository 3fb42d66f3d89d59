"""An OpenAI-compatible server that does what a word in the question says: `python tests/judge_server.py` prints its port.

The first request for a question may fail, the second is answered. GET /seen lists the requests' bodies and headers.
"""

import json
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FIRST = {  # status, headers, body
    "busy": (429, {"Retry-After": "0"}, b"slow down"),
    "broken": (500, {}, b"out of memory"),
    "garbage": (200, {}, b"<html>hello</html>"),
    "empty": (200, {}, b'{"choices": []}'),
    "parts": (200, {}, b'{"choices": [{"message": {"content": [{"type": "text", "text": "Verdict: yes"}]}}]}'),
}
ALWAYS = {"down": (503, {}, b"loading"), "refused": (400, {}, b'{"error": "no model of that name"}')}
TEXTS = {"unsound": "Step 2 is wrong.\nVerdict: no", "chatty": "Verdict: yes, I think", "silent": None}
seen: list[dict] = []
asked: Counter = Counter()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, {}, json.dumps(seen).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen.append({"path": self.path, "key": self.headers["Authorization"], "body": body})
        question = body["messages"][-1]["content"]
        words = question.partition("\n\n")[0].split()
        word = words[1] if len(words) > 1 else ""
        asked[question] += 1
        if word in ALWAYS:
            time.sleep(0.3)  # the other requests are answered first
            return self.reply(*ALWAYS[word])
        if asked[question] == 1:
            if word in FIRST:
                return self.reply(*FIRST[word])
            if word == "slow":
                time.sleep(3)
            if word == "drip":  # a byte at a time, each in time
                return self.reply(200, {}, *[b" "] * 9)
        text = TEXTS.get(word, "All sound.\n\nVerdict: yes\n")
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if word == "cut":
            choice["finish_reason"] = "length"
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        self.reply(200, {}, json.dumps({"choices": [choice], "usage": usage}).encode())

    def reply(self, status, headers, *parts):
        self.send_response(status)
        for name, value in {"Content-Length": str(sum(map(len, parts))), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for place, part in enumerate(parts):
            time.sleep(0.4 * (place > 0))
            self.wfile.write(part)

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except OSError:  # the client has waited long enough
            self.close_connection = True


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # connections at once
    daemon_threads = True


server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
