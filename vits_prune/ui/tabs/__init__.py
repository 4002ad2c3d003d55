"""One file a tab: its components and its events."""
