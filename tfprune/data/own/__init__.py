"""A user's own data: arrays of any shape, with targets of any kind."""
