"""glyphrun: from labelled frames to a served text recognizer, on Ray."""

__version__ = "0.1.0"
