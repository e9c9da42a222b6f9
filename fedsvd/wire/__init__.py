"""Messages between server and clients: record keys, array layout, and factor versions."""
