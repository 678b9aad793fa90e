"""Django's ASGI handler with each request served by one thread, from first to last.

As it comes, the handler starts a thread for each request and, for every middleware that
knows no ``async``, goes from the event loop to that thread and back. Our views and
middlewares are all synchronous, so the whole chain runs in the thread, and threads are
kept for the next request. That is a quarter of what accepting a job costs beside its SQL:
`make bench BENCH=accept` gives 0.73 of its floor this way and 0.62 the other,
`BENCH=poll` 0.58 and 0.43.

A form that Django's own reading stumbles over is a bad request, not a fault of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.http import HttpRequest, HttpResponseBase, QueryDict
from django.http.multipartparser import MultiPartParserError
from django.utils.datastructures import MultiValueDict

#: Threads kept for later; a burst may use more.
IDLE_MAX: Final = 32


class Request(ASGIRequest):
    def parse_file_upload(
        self,
        META: Mapping[str, Any],  # noqa: N803 - Django's name
        post_data: Any,
    ) -> tuple[QueryDict, MultiValueDict[str, Any]]:
        """Raise MultiPartParserError also for what Python's reader of headers dies of.

        Of the pieces of one parameter (RFC 2231) it expects each to have a number, and
        of a character set that it decodes.
        """
        try:
            return super().parse_file_upload(META, post_data)
        except (TypeError, ValueError, LookupError) as error:
            raise MultiPartParserError("A part's header is malformed.") from error


class Handler(ASGIHandler):
    request_class = Request

    def __init__(self) -> None:
        super().__init__()
        self._idle: list[ThreadPoolExecutor] = []

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        return await sync_to_async(self.get_response)(request)

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            raise ValueError(f"only http is served, not {scope['type']}")
        thread = self._idle.pop() if self._idle else ThreadPoolExecutor(1, "request")
        context = ThreadSensitiveContext()
        async with context:
            # What Django itself does in threads for this request (signals, closing the
            # answer) goes to the same one; otherwise it would start its own here.
            SyncToAsync.context_to_thread_executor[context] = thread
            try:
                await self.handle(scope, receive, send)
            finally:
                del SyncToAsync.context_to_thread_executor[context]
                if len(self._idle) < IDLE_MAX:
                    self._idle.append(thread)
                else:
                    thread.shutdown(wait=False)
