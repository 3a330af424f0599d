"""The command `app`: a page in the browser to play with a run's map."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from .terminal import console, watching


@dataclass(frozen=True)
class App:
    """Open a page in the browser: samples in a few steps beside the teacher, where points go under X_{s,t}, residuals,
    inversion and transfer, with timings. Ctrl-C ends it."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run."""
    port: int | None = None
    """Port of the page; the first free one from 7860 on unless given."""
    host: str = "127.0.0.1"
    """Address to listen at: this machine alone unless given; 0.0.0.0 for the network too, without a password."""
    share: bool = False
    """Make a public address too, by Gradio's servers."""
    import_module: str | None = None
    """Module to import first, of the network that `distill --teacher MODULE:CALLABLE` made a map of."""
    net: str = ""
    """The network of the run, for one that was trained with --net: its name, `module:Class`, again."""


def serve(given: App) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ValueError: there is no finished run in the folder, Gradio is not installed, or the port is taken.
    """
    from ..app import opened, server

    server.import_gradio()
    with watching("app") as watch:
        watch("loading the run", 0.1)
        run = opened.OpenRun(given.folder, given.net)
        watch("starting the page", 0.6)
        page, address = server.serve(run, host=given.host, port=given.port, share=given.share)
    console.print(f"{given.folder} is open at {address}; Ctrl-C ends it.", soft_wrap=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("the page is closed.")
    finally:
        page.close(verbose=False)
