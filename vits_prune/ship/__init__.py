"""Voices in the formats in which they are used: folders, ONNX, Piper. A format is one file here and one line in formats.py."""

from vits_prune.ship.formats import FORMATS, Export, export_voice

__all__ = ["FORMATS", "Export", "export_voice"]
