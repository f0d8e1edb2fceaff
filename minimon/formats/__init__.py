"""Transcripts and logs -> plain rows."""
