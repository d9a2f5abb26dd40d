"""The endpoints, a file for each kind of client. They hold `router`s and know the front's `Service` only."""
