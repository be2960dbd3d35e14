"""The web console: what operators see. Server-rendered pages over the same services as the API."""
