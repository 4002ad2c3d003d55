"""The names of the pruning methods and the modules that hold them: a method is one file and one line here."""

METHODS: dict[str, str] = {
    "magnitude": "vits_prune.pruning.magnitude",
}
"""Method -> module with a function `prune_weights(voice, spec) -> {parameter name: new tensor}`."""

SCOPES: tuple[str, ...] = ("global", "local")
"""How the amount is shared out among the layers."""
