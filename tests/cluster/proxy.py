"""A TCP proxy that misbehaves: it stands in front of a node, and rings name it instead of the node.

    p = Proxy(node_port).start()          # p.address is what a ring file says
    p.set("hang")                         # from now on, also for connections that are open

| mode | what a peer sees |
|---|---|
| pass | the node |
| hang | connections are taken and what is sent is read; nothing comes back |
| blackhole | nothing is read any more: what is sent stays in the sender's buffers; nothing comes back |
| slow | 10 kB/s in each direction, all connections together |
| reset | half of the next piece arrives, then the connection is reset |
| refuse | nobody listens; open connections are reset |
| latency | each piece arrives 200 ms late |

A thread for each direction of a connection: made for tests with some dozen of them.
"""
import socket
import struct
import threading
import time

PIECE, SLOW_PIECE = 64 * 1024, 1000
MODES = ("pass", "hang", "blackhole", "slow", "reset", "refuse", "latency")


class Proxy:
    rate, delay_s = 10_000, 0.2

    def __init__(self, target, host="127.0.0.1"):
        """target: a port on this host, or (host, port)."""
        self.target = target if isinstance(target, tuple) else (host, target)
        self.host, self.port = host, None
        self.mode = "pass"
        self.changed = threading.Condition()
        self.connections, self.accepted, self.listener = set(), 0, None
        self.metered = {"up": threading.Lock(), "down": threading.Lock()}
        self.bytes = {"up": 0, "down": 0}

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def start(self):
        self._listen()
        return self

    def _listen(self):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((self.host, self.port or 0))
        s.listen(256)
        self.port, self.listener = s.getsockname()[1], s
        threading.Thread(target=self._accept, args=(s,), daemon=True).start()

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client):
        server = socket.socket()
        pair = (client, server)
        with self.changed:
            self.connections.add(pair)
        try:
            for s in pair:
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.connect(self.target)
        except OSError:
            self._end(pair, reset=True)
            return
        threading.Thread(target=self._pump, args=(pair, server, client, "down"), daemon=True).start()
        self._pump(pair, client, server, "up")

    def _end(self, pair, reset=False):
        with self.changed:
            if pair not in self.connections:
                return
            self.connections.discard(pair)
        for s in pair:
            try:
                if reset:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def _until_it_passes(self, pair):
        """Waits while nothing may be moved. False: the connection has ended."""
        with self.changed:
            while self.mode == "blackhole" and pair in self.connections:
                self.changed.wait(1)
            return pair in self.connections

    def _pump(self, pair, source, sink, way):
        try:
            while self._until_it_passes(pair):
                data = source.recv(SLOW_PIECE if self.mode == "slow" else PIECE)
                if not data:
                    break
                if not self._until_it_passes(pair):
                    return
                mode = self.mode
                if mode == "hang":
                    continue
                if mode == "reset":
                    if way == "up":
                        sink.sendall(data[:len(data) // 2])
                    self._end(pair, reset=True)
                    return
                if mode == "latency":
                    time.sleep(self.delay_s)
                if mode == "slow":
                    with self.metered[way]:
                        time.sleep(len(data) / self.rate)
                sink.sendall(data)
                self.bytes[way] += len(data)
        except OSError:
            pass
        self._end(pair)

    def set(self, mode):
        """What was swallowed by `hang` never arrives, so its connections end with it."""
        assert mode in MODES
        with self.changed:
            was, self.mode = self.mode, mode
            self.changed.notify_all()
        if mode == "refuse" and was != "refuse":
            self._close_listener()
            self._reset_all()
        elif was == "refuse" and mode != "refuse":
            self._listen()
        elif was == "hang" and mode != "hang":
            self._reset_all()

    def _close_listener(self):
        listener, self.listener = self.listener, None
        if listener:
            try:
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            except OSError:
                pass
            listener.close()

    def _reset_all(self):
        with self.changed:
            pairs = list(self.connections)
        for pair in pairs:
            self._end(pair, reset=True)

    def stop(self):
        self._close_listener()
        with self.changed:
            self.mode = "pass"
            self.changed.notify_all()
        self._reset_all()
