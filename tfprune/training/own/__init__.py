"""Training on a user's own data, for a task of any kind."""
