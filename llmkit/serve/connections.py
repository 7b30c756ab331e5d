"""Close the connections that would be open for ever: half a request, an answer that nobody takes."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

LOOK = 5.0  # seconds between looks at a connection
PATIENCE = 3  # looks without a request, or without an end of closing, before it is cut off


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, which waits without limit for the rest of a request's head and for a last answer's reader."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override, unused-ignore]
        """Watch the connection."""
        super().connection_made(transport)
        self._looks = 0
        self._watch = self.loop.call_later(LOOK, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the watch."""
        self._watch.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to count anew: the client is alive."""
        self._looks = 0
        super().on_response_complete()

    def _look(self) -> None:
        busy = self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()
        self._looks = 0 if busy else self._looks + 1
        if self._looks >= PATIENCE:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(LOOK, self._look)
