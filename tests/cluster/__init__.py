"""A real one-node Kubernetes for tests, inside namespaces of its own: `node.Node`. See `README.md` beside this file."""
