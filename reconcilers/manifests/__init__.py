"""Pure: a job or server as an engine is asked for it -> Kubernetes objects, and back from their states to words."""
