"""The endpoints, a file for each protocol. Each file has a `router` and uses nothing but the front's `Service`."""
