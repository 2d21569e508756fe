"""A live view of running nodes: in a browser, and in a terminal."""
