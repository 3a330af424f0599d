"""The server of the page: Gradio without telemetry or fonts from the network, a free port, the theme."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from .opened import OpenRun

HOST, PORT, PORTS = "127.0.0.1", 7860, 100
"""Where the page is unless told otherwise: on this machine alone, at the first free one of so many ports."""
TRIES = 5
"""Ports that are tried where other programs begin at the same time."""
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important }
#jumps-picture img { max-height: 640px }
.about h1 { margin-bottom: .2rem } .about p { color: var(--body-text-color-subdued); max-width: 60rem }
.said { min-height: 5.5rem; color: var(--body-text-color-subdued) }
.said .refused { color: var(--body-text-color); border-left: 4px solid #cf222e; padding: .3rem .7rem;
  background: var(--background-fill-secondary); border-radius: 6px }
"""


def import_gradio() -> Any:
    """The module, without its telemetry.

    Raises:
        ValueError: it is not installed; the line says how it is.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise ValueError("the page is made by Gradio, which is not installed: pip install 'flowmaps[app]'.") from None
    return gradio


def free_port(host: str = HOST, port: int | None = None) -> int:
    """A port that no other program has: the one that is given, or the first free one from `PORT` on.

    Raises:
        ValueError: the given one is taken, out of range or not allowed, there is no such address here, or none is free.
    """
    if port is not None and not 1 <= port <= 65_535:
        raise ValueError(f"--port must be from 1 to 65535, got {port}.")
    for tried in range(PORT, PORT + PORTS) if port is None else (port,):
        with socket.socket() as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                place.bind((host, tried))
                return tried
            except PermissionError:
                raise ValueError(f"port {tried} is not allowed to this user: pass --port above 1023.") from None
            except socket.gaierror:
                raise ValueError(f"this machine has no address {host}: leave --host out, or pass 0.0.0.0.") from None
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise ValueError(f"this machine has no address {host}: leave --host out.") from None
    what = f"ports {PORT} to {PORT + PORTS - 1} are" if port is None else f"port {port} is"
    raise ValueError(f"{what} taken by another program: pass another --port.")


def serve(run: OpenRun, *, host: str = HOST, port: int | None = None, share: bool = False) -> tuple[Any, str]:
    """Serve the page in a thread, and return its server and its address.

    Args:
        run: the run.
        host: the address to listen at; 127.0.0.1 is this machine alone.
        port: the port; the first free one from `PORT` on unless given.
        share: whether Gradio makes a public address too.

    Raises:
        ValueError: Gradio is not installed, the address is of IPv6, or the port is taken.
    """
    gradio = import_gradio()
    if ":" in host:
        raise ValueError(f"--host must be an IPv4 address or a name, got {host}: pass 127.0.0.1, or 0.0.0.0 for all.")
    free_port(host, port)  # which refuses a port at once
    from .page import Page  # which imports matplotlib

    page = Page(run, gradio).build()
    font = [gradio.themes.Font(name) for name in ("system-ui", "Segoe UI", "Liberation Sans", "Arial", "sans-serif")]
    mono = [gradio.themes.Font(name) for name in ("ui-monospace", "Menlo", "Liberation Mono", "monospace")]
    theme = gradio.themes.Default(primary_hue="blue", font=font, font_mono=mono)  # no font from the network
    options = {"share": share, "theme": theme, "css": CSS, "quiet": True, "prevent_thread_lock": True}
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own server, which no proxy reaches
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", HOST, host)))
    options |= {"ssr_mode": False, "footer_links": [], "enable_monitoring": False}
    for left in reversed(range(TRIES)):
        found = free_port(host, port)
        try:
            _, local, public = page.queue().launch(server_name=host, server_port=found, **options)
            return page, public or local
        except OSError:  # another program has taken it in the meantime
            if port is not None or not left:
                raise ValueError(f"port {found} was taken by another program just now: pass another --port.") from None
    raise AssertionError
