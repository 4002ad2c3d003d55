"""The Space's entry: build the page and launch it."""

import os
import tempfile
from pathlib import Path

from vits_prune.interrupt import clean_interrupts, stop_at_once

if __name__ == "__main__":
    stop_at_once()  # while modules load
    # Gradio's own default, which it works out anew for each of a page's outputs at each update.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir(), "gradio").resolve()))

from vits_prune.memory import keep_freed_memory
from vits_prune.ui.page import build, launch_options
from vits_prune.ui.stage import prepare

demo = build()

if __name__ == "__main__":
    keep_freed_memory()
    prepare()
    with clean_interrupts():
        demo.launch(**launch_options())
