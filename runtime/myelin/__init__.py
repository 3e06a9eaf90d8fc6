"""What Myelin puts into a user's image."""
