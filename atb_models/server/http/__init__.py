"""The HTTP connections below the endpoints: accepting them, reading bodies, noticing that a client has left."""
