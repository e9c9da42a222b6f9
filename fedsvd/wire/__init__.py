"""Messages between server and clients: their keys, the layout of their arrays, and versions of factors."""
