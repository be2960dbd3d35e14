"""Views by domain: each parses, calls one service or selector and renders."""
