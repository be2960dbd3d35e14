"""The management API, ``/api/v1/``: everything that the console does, for app teams."""
