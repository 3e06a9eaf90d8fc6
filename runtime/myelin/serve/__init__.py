"""The model server around the user's class: Seldon's `data` protocol over REST."""
