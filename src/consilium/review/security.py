"""What stands between the page and everybody else: token, Host, Origin, policy, size limits."""

import hmac
import secrets

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES = 32
MAX_BODY_BYTES = 64 * 2**20
"""A bit-packed mask of 512×512×300 voxels has 10 MB; nothing larger than this is ever a correction."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
PAGE_POLICY = (
    "sandbox allow-downloads; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
"""Of a page that a verb wrote, which holds its own style: no script, no origin of its own."""
SECURITY_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def cookie_of(port: int) -> str:
    """Name of the cookie with the token: browsers send one to every port of a machine (RFC 6265, 8.5)."""
    return f"consilium_token_{port}"


def new_token() -> str:
    """A random token for one start of the page."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class BodyTooLarge(Exception):
    """Raised while a body streams in that is larger than `MAX_BODY_BYTES`."""


class Guard:
    """ASGI middleware that lets in only the browser that was given the token, on this machine.

    - The ``Host`` header must name the loopback address and port served: a page of another name that
      resolves to this machine (DNS rebinding) is refused.
    - A request that changes something must come from our own origin (``Origin``): cross-site posts fail.
    - Every request needs the token, given once in the address and kept as a strict, script-proof cookie.
    - Bodies are counted as they arrive, whatever their ``Content-Length`` says.

    Args:
        app: What to guard.
        token: From `new_token`.
        port: Served on 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._cookie = cookie_of(port)
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and hand it on, or answer it with a refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        try:
            await self._app(scope, _counted(receive), _with_headers(send))
        except BodyTooLarge:
            limit = MAX_BODY_BYTES // 2**20
            response = PlainTextResponse(f"upload: must be at most {limit} MiB; it is larger.", 413)
            await response(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | RedirectResponse | None:
        if headers.get("host") not in self._hosts:
            return PlainTextResponse("host: must be this machine's own address; it is another.", 421)
        changes = scope["method"] not in {"GET", "HEAD"}
        origin = headers.get("origin")
        if (changes and origin not in self._origins) or (origin is not None and origin not in self._origins):
            return PlainTextResponse("origin: must be this page; the request comes from another.", 403)
        given = QueryParams(scope["query_string"]).get("token")
        if scope["method"] == "GET" and scope["path"] == "/" and given is not None:
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                return PlainTextResponse(STALE, 403)
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return answer
        kept = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        if not hmac.compare_digest(kept.encode(), self._token.encode()):
            return PlainTextResponse(STALE, 403)
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > MAX_BODY_BYTES:
            return PlainTextResponse(f"upload: must be at most {MAX_BODY_BYTES // 2**20} MiB.", 413)
        return None


STALE = "token: must be the one of this start of the page. Open the address that consilium review printed."


def _counted(receive: Receive) -> Receive:
    received = 0

    async def counting() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise BodyTooLarge
        return message

    return counting


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            message["headers"] = headers.raw
        await send(message)

    return sending
