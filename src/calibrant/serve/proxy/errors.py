"""Answers to what is not served, and to what fails inside: in the shape of OpenAI's errors."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from calibrant.serve.proxy.request import ApiError

_ELSEWHERE = ("/v1/responses", "/v1/completions")


async def _unknown(request: Request, _: Exception) -> Response:
    path = request.url.path
    hint = "; use /v1/chat/completions" if path.rstrip("/") in _ELSEWHERE else ""
    error = ApiError(404, f"this proxy does not serve {path[:100]}{hint}", code="unknown_url")
    return JSONResponse(error.body(), status_code=404)


async def _method(request: Request, _: Exception) -> Response:
    error = ApiError(405, f"{request.method} is not served here", code="method_not_allowed")
    return JSONResponse(error.body(), status_code=405)


async def _bug(_: Request, error: Exception) -> Response:
    return JSONResponse(failure(error).body(), status_code=500)


def failure(error: Exception) -> ApiError:
    """What a client is told of a failure of the proxy itself."""
    return ApiError(500, f"the proxy failed: {type(error).__name__}", code="proxy_failed")


HANDLERS: Any = {404: _unknown, 405: _method, 500: _bug}
"""Status -> what answers."""
