"""The Space's entry: build the page and launch it."""

from vits_prune.ui.page import build, launch_options

demo = build()

if __name__ == "__main__":
    demo.launch(**launch_options())
