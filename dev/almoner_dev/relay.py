"""A TCP relay: one more address for a server that listens on loopback only.

Role: pods in network namespaces reach the API server through a bridge's address. kube-apiserver binds
to one address or to all of them; all would offer it to the whole network. So it stays on loopback, and
this process answers on the bridge's address alone.

A listening socket that was opened in another network namespace stays there whoever accepts on it: `--listen-fd` gives
such a socket, and so a port of the machine leads into a namespace without a change to the machine's network.

Boundary: bytes in, bytes out; TLS ends at the server. Run as `python -m almoner_dev.relay`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket

CHUNK_BYTES = 64 * 1024
CONNECTIONS_MAX = 4096


async def relay(listen: tuple[str, int] | socket.socket, target: tuple[str, int]) -> None:
    """Relays every connection to `listen`, an address or a listening socket, to `target`, until cancelled."""
    open_connections = asyncio.Semaphore(CONNECTIONS_MAX)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with open_connections:
            try:
                upstream_reader, upstream_writer = await asyncio.open_connection(*target)
            except OSError:
                writer.close()
                return
            try:
                await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))
            finally:
                for each in (writer, upstream_writer):
                    each.close()

    if isinstance(listen, socket.socket):
        server = await asyncio.start_server(serve, sock=listen, limit=CHUNK_BYTES)
    else:
        server = await asyncio.start_server(serve, *listen, limit=CHUNK_BYTES)
    async with server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError):
        # Half-closed: the other direction may still have something to say.
        if writer.can_write_eof():
            writer.write_eof()


def main() -> None:
    """Parses the command line and relays until stopped."""
    parser = argparse.ArgumentParser(description="Relays TCP connections to a server on loopback.")
    parser.add_argument("address", help="address of this machine to listen on")
    parser.add_argument("port", type=int)
    parser.add_argument("target", help="address of the server")
    parser.add_argument("target_port", type=int)
    parser.add_argument("--listen-fd", type=int, help="accept on this inherited socket instead of address and port")
    options = parser.parse_args()
    listen = (options.address, options.port) if options.listen_fd is None else socket.socket(fileno=options.listen_fd)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(relay(listen, (options.target, options.target_port)))


if __name__ == "__main__":
    main()
