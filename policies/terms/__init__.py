"""The nouns of Myelin, one file each; no verb lives here."""
