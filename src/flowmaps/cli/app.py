"""The command `app`: a page in the browser to play with a run's map."""

from __future__ import annotations

import time

from .options import App
from .terminal import console, watching


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
