"""The detector as a service on Ray Serve: an HTTP API and a page."""
