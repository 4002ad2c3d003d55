"""Reference -> Voice. Only this package knows that Piper and the hub exist."""
