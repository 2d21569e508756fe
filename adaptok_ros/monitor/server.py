"""The page, its stream of figures and its pictures, by HTTP.

Whoever is slow gets less: figures and pictures are always the newest, and nothing queues.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import hashlib
import ipaddress
import json
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import resources
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from adaptok_ros.errors import AdaptokError, SettingError, quote
from adaptok_ros.monitor.board import Board, FullError
from adaptok_ros.monitor.pictures import legend_png
from adaptok_ros.monitor.record import Picture

FIGURES_PERIOD = 1.0
"""Seconds between figures at most; also how soon a page that was closed is noticed."""
EVENT_PERIOD = 0.1
"""Seconds between two events at least, and so between two pictures of a kind."""
PATIENCE = 10.0
"""Seconds that a browser may take to send or to take the next bytes."""
MOST_CONNECTIONS = 48
SEND_BUFFER = 1 << 16
"""Bytes that may be on their way to a browser which does not read."""


class WatchServer(socketserver.ThreadingTCPServer):
    """Serves a board to browsers, on a thread of its own.

    :ivar address: host and port to which it listens
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, board: Board, host: str, port: int) -> None:
        """Listen.

        :param port: 0 = any that is free
        :raises SettingError: host or port cannot be had
        """
        if not 0 <= port <= 65535:
            raise SettingError(f'port is {port}; allowed: 0 to 65535')
        self.board = board
        self.closing = False
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family, _, _, _, address = found[0]
            super().__init__(address[:2], _Handler)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            why = getattr(error, 'strerror', None) or error
            raise SettingError(
                f'cannot serve on host {quote(host)}, port {port}: {why}; choose others with '
                '--host and --port (port 0 = any that is free)'
            ) from error
        self.address: tuple[str, int] = self.socket.getsockname()[:2]
        self.names = own_names(host)
        page = resources.files(__package__).joinpath('page.html').read_text(encoding='utf-8')
        self.page, self.policy = page.encode(), content_policy(page)
        self.legend = legend_png()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.address
        return f'http://{f"[{host}]" if ":" in host else host}:{port}/'

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.address[0].split('%')[0]).is_loopback

    def close(self) -> None:
        """End; the streams of figures end with their next event."""
        self.closing = True
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, unless there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection has broken: browsers come and go. Whatever else is a bug, and is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: WatchServer
    protocol_version = 'HTTP/1.1'
    timeout = PATIENCE

    def setup(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        super().setup()

    def version_string(self) -> str:
        """Name of the server."""
        return 'adaptok'

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is somebody's."""

    def end_headers(self) -> None:
        """Let browsers keep nothing, guess nothing, and show nothing of this to other pages."""
        for name, value in (
            ('Cache-Control', 'no-store'),
            ('Content-Security-Policy', self.server.policy),
            ('Cross-Origin-Opener-Policy', 'same-origin'),
            ('Cross-Origin-Resource-Policy', 'same-origin'),
            ('Referrer-Policy', 'no-referrer'),
            ('X-Content-Type-Options', 'nosniff'),
        ):
            self.send_header(name, value)
        super().end_headers()

    def do_GET(self) -> None:
        """Answer, if the request is meant for this server."""
        refusal = self._refusal()
        if refusal:
            self._answer(HTTPStatus.FORBIDDEN, 'text/plain', refusal.encode())
            return
        try:
            url = urlsplit(self.path)
        except ValueError:
            url = SplitResult('', '', '', '', '')
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        answers: dict[str, Callable[[Mapping[str, str]], None]] = {
            '/': self._send_page,
            '/events': self._send_events,
            '/picture': self._send_picture,
            '/legend.png': self._send_legend,
        }
        answer = answers.get(url.path)
        if answer is None:
            self._answer(HTTPStatus.NOT_FOUND, 'text/plain', b'there is no such page\n')
        else:
            answer(query)

    def _refusal(self) -> str:
        """Why the request must come from another web site; '' if it need not."""
        host = self.headers.get('Host', '')
        if not is_own_host(host, self.server.names):
            return f'host is {quote(host)}: this is not a name of this machine\n'
        # Browsers leave out Sec-Fetch-Site where they do not trust the address, as by plain HTTP
        # in a local network. GET requests of the page itself have no Origin.
        fetched_by = self.headers.get('Sec-Fetch-Site', 'none')
        if fetched_by not in ('none', 'same-origin') or 'Origin' in self.headers:
            return 'other web sites may not use this server\n'
        return ''

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_page(self, _: Mapping[str, str]) -> None:
        self._answer(HTTPStatus.OK, 'text/html; charset=utf-8', self.server.page)

    def _send_legend(self, _: Mapping[str, str]) -> None:
        self._answer(HTTPStatus.OK, 'image/png', self.server.legend)

    def _send_picture(self, query: Mapping[str, str]) -> None:
        try:
            kind = Picture(query.get('kind'))
        except ValueError:
            kinds = ', '.join(kind.value for kind in Picture)
            said = f'kind is {quote(query.get("kind", ""))}; allowed: {kinds}\n'
            self._answer(HTTPStatus.BAD_REQUEST, 'text/plain', said.encode())
            return
        frame = self.server.board.frame(query.get('stream', ''), kind)
        if frame is None:
            self._answer(HTTPStatus.NOT_FOUND, 'text/plain', b'no picture yet\n')
            return
        try:
            file = frame.file()
        except AdaptokError as error:
            self._answer(HTTPStatus.UNPROCESSABLE_ENTITY, 'text/plain', f'{error}\n'.encode())
            return
        self._answer(HTTPStatus.OK, 'image/png' if kind is Picture.AGES else 'image/jpeg', file)

    def _send_events(self, query: Mapping[str, str]) -> None:
        topic = query.get('stream', '')
        self.close_connection = True
        try:
            with self.server.board.viewer(topic):
                self.send_response(HTTPStatus.OK)
                self.send_header('Content-Type', 'text/event-stream')
                self.send_header('Connection', 'close')
                self.end_headers()
                self._stream_events(topic)
        except FullError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, 'text/plain', f'{error}\n'.encode())

    def _stream_events(self, topic: str) -> None:
        board = self.server.board
        version, figures_due = -1, 0.0
        told: Mapping[Picture, int] = {}
        while not self.server.closing:
            version = board.wait(version, max(0.0, figures_due - time.monotonic()))
            pictures = board.frames(topic)
            if pictures != told:
                told = pictures
                numbers = {kind.value: number for kind, number in pictures.items()}
                self._send_event('pictures', numbers)
            if time.monotonic() >= figures_due:
                figures_due = time.monotonic() + FIGURES_PERIOD
                self._send_event('figures', figures(board, topic))
            time.sleep(EVENT_PERIOD)

    def _send_event(self, name: str, content: object) -> None:
        text = json.dumps(content, allow_nan=False)
        self.wfile.write(f'event: {name}\ndata: {text}\n\n'.encode())


def figures(board: Board, topic: str) -> dict[str, Any]:
    """What the page shows of a stream beside its pictures, as JSON takes it.

    :param topic: '' = of none
    """
    views = {name: board.view(name) for name in {*board.topics(), topic} if name}
    streams = [
        {'topic': name, 'state': view.state.value, 'level': view.level}
        for name, view in sorted(views.items())
    ]
    shown = views.get(topic)
    return {
        'awaited': board.awaited,
        'streams': streams,
        'stream': plain(dataclasses.asdict(shown)) if shown else None,
    }


def plain(value: Any) -> Any:
    """The same with names in place of enumerations."""
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value.value if isinstance(value, enum.Enum) else value


def content_policy(page: str) -> str:
    """Content-Security-Policy: the page's own script and style, and no other host."""
    script, style = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag in ('script', 'style')
        for text in re.findall(f'<{tag}>(.*?)</{tag}>', page, re.DOTALL)
    )
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def own_names(host: str) -> frozenset[str]:
    """Names by which browsers may call this server, besides addresses.

    :param host: to which it listens
    """
    machine = socket.gethostname().lower()
    return frozenset({'localhost', host.lower(), machine, f'{machine}.local'})


def is_own_host(header: str, names: frozenset[str]) -> bool:
    """Whether a Host header names this server: by an address, or one of its names.

    A web site that lets its own name point here (DNS rebinding) is told by that name.
    """
    try:
        name = (urlsplit(f'//{header}').hostname or '').rstrip('.')
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in names
    return True
