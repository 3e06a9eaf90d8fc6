"""Key-less signing: any Sigstore there is, and one of the controller's own for a team that has none."""
