"""Images and artifacts by content: an OCI layout on disk, layers that are the same on every machine, and builds."""
